"""Measures engines on this machine, with several instances in parallel as in Triton."""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt

from export.engines import Infer

ROUNDS = 5
ROUND_S = 0.8
WARM_UPS = 2

MOST_CALLS = 50
"""Calls per round at most; a small model does not need more for a steady rate."""


def images_per_s(engines: list[list[Infer]], batch: npt.NDArray[np.uint8]) -> list[float]:
    """The median rate of each engine over interleaved rounds, so that a busy moment of the machine affects all equally.

    Args:
        engines: the instances of each engine, which run at the same time.
        batch: uint8 (N, H, W, 3), what one call computes.
    """
    rates: list[list[float]] = [[] for _ in engines]
    for instances in engines:
        for run in instances:
            for _ in range(WARM_UPS):
                run(batch)
    for _ in range(ROUNDS):
        for place, instances in enumerate(engines):
            with ThreadPoolExecutor(len(instances)) as pool:
                started = time.perf_counter()
                deadline = started + ROUND_S
                calls = sum(pool.map(partial(_calls_until, batch=batch, deadline=deadline), instances))
                rates[place].append(calls * len(batch) / (time.perf_counter() - started))
    return [statistics.median(measured) for measured in rates]


def _calls_until(run: Infer, batch: npt.NDArray[np.uint8], deadline: float) -> int:
    calls = 0
    while not calls or (calls < MOST_CALLS and time.perf_counter() < deadline):  # the engines release the interpreter
        run(batch)
        calls += 1
    return calls
