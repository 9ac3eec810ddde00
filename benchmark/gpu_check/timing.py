"""Times work on a device: warm up, then repeat until the time is up."""

import time
from collections.abc import Callable

import torch

from benchmark.results import Figure


def rate(work: Callable[[], object], amount: float, unit: str, device: torch.device, *, budget_s: float) -> Figure:
    """`amount` of something a second: the median over ten or more timed parts, with the spread.

    A part is as many calls as make 1/20 of the budget, between two waits for the device, so that waiting costs little
    and the host may run ahead as it does in use.
    """
    for _ in range(3):
        work()
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    calls = max(1, round(budget_s / 20 / max(time.perf_counter() - began, 1e-6)))
    rates: list[float] = []
    deadline = time.perf_counter() + budget_s
    while len(rates) < 3 or time.perf_counter() < deadline:
        began = time.perf_counter()
        for _ in range(calls):
            work()
        _wait(device)
        rates.append(amount * calls / (time.perf_counter() - began))
    return Figure.of(rates, unit)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
