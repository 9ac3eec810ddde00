"""The step `models`: the paper's table of throughput on this GPU, and what half precision and compilation add.

Table 5 of arXiv:2012.12877 gives images/s of PyTorch in float32 on a V100. Here the distilled models run in float32
without TF32, as there, then in half precision, then compiled with CUDA graphs, at batches from 1 to 512.
"""

import copy
import queue
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.multiprocessing as multiprocessing
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmark.eager import pytorch_model
from benchmark.gpu_check.config import GpuCheckConfig
from benchmark.gpu_check.finding import Finding, earlier, judged
from benchmark.gpu_check.host import device_of
from benchmark.gpu_check.timing import rate
from benchmark.paper import published
from benchmark.results import Condition, Figure, Result

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BUDGET_S = 0.5
COMPILE_LIMIT_S = 240

# Share of the product rate that the best fp16 cell should reach; a narrow model is bound by memory, not products.
AIMS = {"deit_tiny": 0.4, "deit_small": 0.6, "deit_base": 0.6}


@dataclass(frozen=True)
class Variant:
    precision: str
    compiled: bool
    batch_size: int


def cells_of(model: str, *, rehearse: bool) -> list[Variant]:
    """The cells of a model; a large image takes smaller batches in float32, whose one call is a second there."""
    if rehearse:
        return [Variant("fp32", False, 2), Variant("bf16", False, 2)]
    largest = 128 if model.endswith("384") else 512
    return [
        *(Variant("fp32", False, batch) for batch in (1, 32, largest)),
        *(Variant("fp16", False, batch) for batch in (1, 8, 32, 128, 512)),
        *(Variant("bf16", False, batch) for batch in (32, 512)),
        *(Variant("fp16", True, batch) for batch in (1, 32, 512)),
        Variant("bf16", True, 512),
    ]


def check(config: GpuCheckConfig) -> Iterator[Finding]:
    """All models compile at the same time, on the host's cores; then each measures alone."""
    device = device_of(config)
    models = ["deit_tiny_distilled_patch16_224"]
    if not config.rehearse:
        models += [
            f"deit_{size}_distilled_patch16_{side}" for size, side in (("small", 224), ("base", 224), ("base", 384))
        ]
    products = product_rates(config)
    context = multiprocessing.get_context("spawn")
    answers: Any = context.Queue()
    barrier, turn = context.Barrier(len(models)), context.Lock()
    children = [
        context.Process(target=measure, args=(name, device.type, config.rehearse, barrier, turn, answers), daemon=True)
        for name in models
    ]
    for child in children:
        child.start()
    waiting = set(models)
    while waiting:
        try:
            name, cell, found, work = answers.get(timeout=5)
        except queue.Empty:
            if not any(child.is_alive() for child in children):
                yield judged("models", False, f"the processes of {', '.join(sorted(waiting))} died; see the log")
                return
            continue
        if cell is None:
            waiting.discard(name)
            yield from [] if work is None else [judged(name, False, work)]
            continue
        yield row(name, cell, found, work, products, device)
    yield from aims(config, models)


def measure(name: str, device_type: str, rehearse: bool, barrier: Any, turn: Any, answers: Any) -> None:
    """In a separate process: compile, wait for the other models' compilation, then measure when it is our turn."""
    device = torch.device(device_type)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    failure = None
    try:
        model, side = pytorch_model(name)
        work = gflop_per_image(model, side)
        calls = {cell: prepare(model, side, cell, device) for cell in cells_of(name, rehearse=rehearse)}
        for cell, call in calls.items():
            if cell.compiled:
                call()
        barrier.wait(COMPILE_LIMIT_S)
        with turn:
            for cell, call in calls.items():
                budget_s = 0.05 if rehearse else BUDGET_S
                answers.put((name, cell, rate(call, cell.batch_size, "images/s", device, budget_s=budget_s), work))
    except Exception as error:  # the parent must learn of any error
        failure = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    answers.put((name, None, None, failure))


def prepare(model: nn.Module, side: int, cell: Variant, device: torch.device) -> Any:
    """A call that classifies one batch of random images (batch, 3, side, side)."""
    dtype = DTYPES[cell.precision]
    copied = copy.deepcopy(model).to(device, dtype).eval()
    run = torch.compile(copied, mode="reduce-overhead", dynamic=False) if cell.compiled else copied
    images = torch.randn(cell.batch_size, 3, side, side, device=device, dtype=dtype)

    @torch.inference_mode()
    def call() -> object:
        return run(images)

    return call


@torch.inference_mode()
def gflop_per_image(model: nn.Module, image_size: int) -> float:
    """Operations of the matrix products and convolutions; a multiplication with its addition counts as two."""
    shapes = copy.deepcopy(model).to("meta")
    for module in shapes.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", False)  # noqa: B010  so that its products are counted one by one
    with FlopCounterMode(display=False) as counter:
        shapes(torch.empty(1, 3, image_size, image_size, device="meta"))
    return float(counter.get_total_flops()) / 1e9


def row(
    name: str, cell: Variant, found: Figure, work: float, products: dict[str, float], device: torch.device
) -> Finding:
    """One cell, with its share of the product rate and the paper's figure."""
    figures = {"images_per_s": found}
    text = f"{found.value:.0f} images/s"
    if (limit := products.get(cell.precision)) is not None:
        figures["limit_share"] = Figure(value=found.value * work / limit, unit="share")
        text += f", {figures['limit_share'].value:.0%} of the product rate"
    paper = published(name)
    if cell.precision == "fp32" and paper is not None:
        text += f"; the paper's V100 {paper.images_per_s:.0f}"
    conditions: dict[str, Condition] = {
        "batch_size": cell.batch_size,
        "device": device.type,
        "compiled": cell.compiled,
        "pytorch": name,
    }
    result = Result("eager", name, cell.precision, conditions, figures)
    how = "compiled" if cell.compiled else "eager"
    return Finding(
        name=f"{name} {cell.precision} {how}, batch {cell.batch_size}", verdict="measured", text=text, results=(result,)
    )


def aims(config: GpuCheckConfig, models: list[str]) -> Iterator[Finding]:
    """Whether the best fp16 cell of each model reaches its share."""
    records = earlier(config)
    for name in models:
        shares = [
            record.value("limit_share") or 0.0
            for record in records
            if record.kind == "eager" and record.model == name and record.precision == "fp16"
        ]
        if shares:
            aim = next(share for prefix, share in AIMS.items() if name.startswith(prefix))
            yield judged(f"{name}, best in fp16", max(shares) >= aim, f"{max(shares):.0%} of matmul, aim {aim:.0%}")


def product_rates(config: GpuCheckConfig) -> dict[str, float]:
    """GFLOP/s by precision, of the step `products`; empty where it has not run."""
    return {
        record.precision: record.value("gflop_per_s") or 0.0
        for record in earlier(config)
        if record.kind == "machine_limit" and record.model == "product"
    }
