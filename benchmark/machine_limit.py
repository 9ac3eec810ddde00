"""What this machine can multiply: the rate of large and of DeiT-shaped matrix products, by precision.

An engine's images/s are worth little without it: the share of the machine's limit says whether the engine or the
machine is slow. bfloat16 is torch's product (oneDNN's), int8 ONNX Runtime's MatMulInteger of uint8 activations and int8
weights. float32 is measured with both, because which one is the faster depends on the processor.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmark.onnx_product import onnx_product

LARGE = (4096, 4096, 4096)
DEIT_TINY_FC1 = (8 * 198, 192, 768)
"""The wide product of DeiT-Ti's MLP at batch 8: (tokens, width, hidden)."""

REPETITIONS = 9
WARM_UPS = 2


@dataclass(frozen=True, kw_only=True)
class ProductRate:
    """Rate of one matrix product: 2 M K N operations over the time of a call.

    Attributes:
        gops_median, gops_best: in 10^9 operations a second, over the repetitions.
    """

    precision: str
    engine: str
    shape: tuple[int, int, int]
    threads: int
    gops_median: float
    gops_best: float


def machine_limit(
    threads: int,
    *,
    precisions: tuple[str, ...] = ("fp32", "bf16", "int8"),
    shapes: tuple[tuple[int, int, int], ...] = (LARGE, DEIT_TINY_FC1),
    call_s: float = 0.2,
) -> list[ProductRate]:
    """Measure the products, repetition by repetition in turns, so that a busy moment of the machine hits all alike.

    Args:
        threads: that one product may use.
        call_s: how long one repetition repeats the product, in s.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        products = {
            (precision, engine, shape): run
            for precision in precisions
            for shape in shapes
            for engine, run in _products(precision, shape, threads)
        }
        rates: dict[tuple[str, str, tuple[int, int, int]], list[float]] = {key: [] for key in products}
        for _ in range(WARM_UPS):
            for run in products.values():
                run()
        for _ in range(REPETITIONS):
            for key, run in products.items():
                rates[key].append(_rate(run, key[2], call_s))
    finally:
        torch.set_num_threads(before)
    return [
        ProductRate(
            precision=precision,
            engine=engine,
            shape=shape,
            threads=threads,
            gops_median=statistics.median(measured),
            gops_best=max(measured),
        )
        for (precision, engine, shape), measured in rates.items()
    ]


def fastest(rates: list[ProductRate]) -> dict[str, ProductRate]:
    """By precision the product with the highest median."""
    return {rate.precision: rate for rate in sorted(rates, key=lambda rate: rate.gops_median)}


def _rate(run: Callable[[], object], shape: tuple[int, int, int], call_s: float) -> float:
    calls, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < call_s or not calls:
        run()
        calls += 1
    m, k, n = shape
    return 2 * m * k * n * calls / elapsed / 1e9


def _products(precision: str, shape: tuple[int, int, int], threads: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """By engine a call that multiplies once."""
    import torch

    if precision in ("fp32", "int8"):
        operator, run = onnx_product(precision, shape, threads)
        yield f"onnxruntime {operator}", run
    if precision in ("fp32", "bf16"):
        kind = torch.float32 if precision == "fp32" else torch.bfloat16
        m, k, n = shape
        left, right = torch.randn(m, k, dtype=kind), torch.randn(k, n, dtype=kind)
        out = torch.empty(m, n, dtype=kind)
        yield f"torch {torch.__version__}", lambda: torch.mm(left, right, out=out)
