"""What each loss adds to a training step, in time and memory."""

import resource
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import torch
import typer
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.optim import create_optimizer_v2
from torch import nn
from typer import Option

from deit.log import configure_logging
from deit.options import command_of
from deit.preprocessing import Preprocessing
from studies import run_study
from training.config import TrainConfig
from training.distillation import Objective
from training.learner import features_of, loss_of, teach
from training.model import Teacher, choose_attention, create_model
from training.processes import choose_device, choose_precision
from training.provenance import machine

LOSSES: dict[str, dict[str, Any]] = {
    "none": {"distillation": "none"},
    "soft": {"distillation": "soft"},
    "hard": {"distillation": "hard"},
    "nkd": {"distillation": "nkd"},
    "vitkd": {"features": "vitkd"},
    "vitkd + nkd": {"features": "vitkd", "distillation": "nkd"},
}
"""By the name in the table, the options that ask for it; through the class token."""

WARM_UP_STEPS = 2
MEBIBYTE = 2**20


@dataclass(frozen=True, kw_only=True)
class CostConfig:
    model: Annotated[str, Option(help="timm's name of the student.")] = "deit_tiny_patch16_224"
    model_arg: Annotated[list[str] | None, Option(metavar="KEY=VALUE", help="As of deit train. Repeatable.")] = None
    teacher: Annotated[str, Option(help="timm's name of the teacher, a transformer; its weights are random.")] = (
        "deit3_small_patch16_224"
    )
    teacher_arg: Annotated[list[str] | None, Option(metavar="KEY=VALUE", help="The same of the teacher.")] = None
    num_classes: Annotated[int, Option(min=2)] = 1000
    image_size: Annotated[int, Option(min=8, help="Side of the images, in pixels.")] = 224
    batch_size: Annotated[int, Option(min=2)] = 32
    steps: Annotated[int, Option(min=1, help="Measured steps of a loss in a round, after two that are not.")] = 10
    rounds: Annotated[int, Option(min=1, help="The losses take turns so often, each time in a new process.")] = 3
    precision: Annotated[
        Literal["auto", "bf16", "fp32"], Option(help="auto: bf16 autocast where the machine computes in it.")
    ] = "auto"
    device: Annotated[str, Option(help="torch's name of the device; auto: a GPU if there is one.")] = "auto"
    output: Annotated[Path | None, Option(help="Write the table to this file too, as Markdown.")] = None


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """The cost of one loss: median time of a step in each round, and the most memory that any round held.

    Memory is what torch allocated on a GPU, else the whole process at its peak, interpreter and libraries included.
    """

    step_ms: tuple[float, ...]
    peak_bytes: int


def measure_losses(config: CostConfig) -> dict[str, StepCost]:
    """Measure every loss in turn, round after round, each in a separate process, so that none inherits memory."""
    rounds: dict[str, list[tuple[float, int]]] = {name: [] for name in LOSSES}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as processes:
        for _ in range(config.rounds):
            for name, measured in rounds.items():
                measured.append(processes.submit(measure_loss, config, name).result())
    return {
        name: StepCost(step_ms=tuple(ms for ms, _ in measured), peak_bytes=max(peak for _, peak in measured))
        for name, measured in rounds.items()
    }


def measure_loss(config: CostConfig, loss: str) -> tuple[float, int]:
    """Median time of a step in ms, and the peak of memory in bytes, in this process."""
    needs_teacher = LOSSES[loss] != {"distillation": "none"}
    settings = TrainConfig(
        data=Path(),
        name="cost",
        model=config.model,
        model_arg=config.model_arg,
        token="class",
        teacher=config.teacher if needs_teacher else None,
        **LOSSES[loss],
    )
    teacher_args = TrainConfig(data=Path(), name="cost", model_arg=config.teacher_arg).model_args
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    torch.manual_seed(0)
    sizes = {"num_classes": config.num_classes, "image_size": config.image_size, "drop_path": 0.0}
    student = create_model(settings.model, model_args=settings.model_args, **sizes).to(device).train()  # type: ignore[arg-type]
    choose_attention(student, device, precision)
    teacher = None
    if needs_teacher:
        view = Preprocessing(
            image_size=config.image_size,
            crop_pct=1.0,
            interpolation="bicubic",
            mean=IMAGENET_DEFAULT_MEAN,
            std=IMAGENET_DEFAULT_STD,
        )
        network = create_model(config.teacher, model_args=teacher_args, **sizes)  # type: ignore[arg-type]
        teacher = Teacher(config.teacher, network, view, view).to(device)
    objective = Objective(student, loss_of(settings), features_of(settings, student, teacher)).to(device)
    optimizer = create_optimizer_v2(objective, opt="adamw", lr=1e-4, weight_decay=0.05)
    autocast = torch.autocast(device.type, precision) if precision != torch.float32 else nullcontext()
    images = torch.randn(config.batch_size, 3, config.image_size, config.image_size, device=device)
    targets = torch.rand(config.batch_size, config.num_classes, device=device).softmax(dim=-1)

    durations_s = []
    for step in range(WARM_UP_STEPS + config.steps):
        started = time.perf_counter()
        optimizer.zero_grad()
        with autocast:
            lesson = () if teacher is None else teach(teacher, images, objective.features)
            total = objective(images, targets, *lesson)
        total.backward()
        nn.utils.clip_grad_norm_(objective.parameters(), 5.0)
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if step >= WARM_UP_STEPS:
            durations_s.append(time.perf_counter() - started)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return median(durations_s) * 1e3, peak


def cost_table(config: CostConfig, costs: dict[str, StepCost]) -> str:
    """The measurements as Markdown: the median of the rounds, and the lowest and highest of them."""
    device = choose_device(config.device)
    precision = str(choose_precision(config.precision, device)).removeprefix("torch.")
    plain = costs["none"]
    lines = [
        f"{config.model} from {config.teacher}, {config.batch_size} images of {config.image_size} px, {precision}, on "
        f"{machine()}; torch {torch.__version__}; "
        f"{config.rounds} rounds of {config.steps} steps",
        "",
        "| loss | ms a step | of rounds | more | peak memory, MiB | more |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, cost in costs.items():
        step_ms, more_bytes = median(cost.step_ms), cost.peak_bytes - plain.peak_bytes
        more = step_ms / median(plain.step_ms) - 1
        lines.append(
            f"| {name} | {step_ms:.1f} | {min(cost.step_ms):.1f} to {max(cost.step_ms):.1f} | {more:+.0%} | "
            f"{cost.peak_bytes / MEBIBYTE:,.0f} | {more_bytes / MEBIBYTE:+,.0f} |"
        )
    return "\n".join(lines)


app = typer.Typer()


@app.command()
@command_of(CostConfig)
def step_cost(config: CostConfig) -> None:
    """Measure time and memory of a training step under each loss, and the difference from a step without a teacher.

    A step is: teacher, student, loss, gradient, clipping, update; on random images, without a data loader.
    """
    configure_logging("text")
    table = cost_table(config, measure_losses(config))
    typer.echo(table)
    if config.output is not None:
        config.output.write_text(table + "\n")


if __name__ == "__main__":
    run_study(app)
