"""The step `products`: the fastest matrix products of the GPU, by precision. Other rates are given as a share of it."""

import itertools
from collections.abc import Callable, Iterator

import torch

from benchmark.gpu_check.config import GpuCheckConfig
from benchmark.gpu_check.finding import Finding
from benchmark.gpu_check.host import device_of
from benchmark.gpu_check.timing import rate
from benchmark.results import Result

SIDE, TINY_SIDE = 8192, 256
BUDGET_S = 1.0
OPERANDS = 3
"""Pairs of operands in turns, so that no product finds its operands in the cache."""


def check(config: GpuCheckConfig) -> Iterator[Finding]:
    """A square product of random matrices in each precision that the device has."""
    device = device_of(config)
    side = TINY_SIDE if config.rehearse else SIDE
    precisions = ("fp32", "bf16") if config.rehearse else ("fp32", "tf32", "fp16", "bf16", "fp8")
    for precision in precisions:
        try:
            work = product(precision, side, device)
            found = rate(work, 2 * side**3 / 1e9, "GFLOP/s", device, budget_s=0.1 if config.rehearse else BUDGET_S)
        except RuntimeError as error:  # torch's word for what a device cannot do
            reason = str(error).splitlines()[0]
            yield Finding(name=f"{precision} product", verdict="not possible here", text=reason)
            continue
        result = Result(
            "machine_limit", "product", precision, {"device": device.type, "side": side}, {"gflop_per_s": found}
        )
        yield Finding(
            name=f"{precision} product",
            verdict="measured",
            text=f"{found.value / 1000:.4g} TFLOP/s at {side} x {side} x {side}",
            results=(result,),
        )


def product(precision: str, side: int, device: torch.device) -> Callable[[], object]:
    """A call that multiplies two matrices (side, side)."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    kind = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16}.get(precision, torch.bfloat16)
    pairs = [
        (torch.randn(side, side, device=device, dtype=kind), torch.randn(side, side, device=device, dtype=kind))
        for _ in range(OPERANDS)
    ]
    turns = itertools.cycle(pairs)
    if precision != "fp8":
        out = torch.empty(side, side, device=device, dtype=kind)

        def multiply() -> object:
            left, right = next(turns)
            return torch.mm(left, right, out=out)

        return multiply
    one = torch.ones((), device=device)
    eights = itertools.cycle(
        [(left.to(torch.float8_e4m3fn), right.to(torch.float8_e4m3fn).t().contiguous().t()) for left, right in pairs]
    )

    def multiply_eights() -> object:
        left, right = next(eights)
        return torch._scaled_mm(left, right, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)

    return multiply_eights
