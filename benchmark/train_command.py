"""`deit benchmark train`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Option

from benchmark.options import RESULTS, Results, Rounds, console, this_command
from deit.options import command_of


@dataclass(frozen=True, kw_only=True)
class TrainBenchmarkConfig:
    """What both sides train, and on what."""

    images: Annotated[Path, Option(help="Photographs: a parquet or tar file, or a data set with a split test.")]
    rounds: Rounds = 5
    workers: Annotated[int, Option(min=0, help="Processes that decode and augment.")] = 2
    loader_images: Annotated[int, Option(min=64, help="Images that each loader reads in a turn.")] = 2000
    batch_size: Annotated[int, Option(min=2, help="Images a step.")] = 32
    steps: Annotated[int, Option(min=0, help="Training steps in a turn; 0 measures the loaders only.")] = 5
    model: Annotated[str, Option(help="The student, timm's name.")] = "deit_tiny_distilled_patch16_224"
    teacher: Annotated[str, Option(help="The teacher, timm's name; its weights are random.")] = "resnet18"
    precision: Annotated[Literal["auto", "bf16", "fp16", "fp32"], Option(help="As in `deit train`.")] = "auto"
    compile: Annotated[bool, Option("--compile", help="Compile our side, as `deit train --compile` does.")] = False
    results: Results = RESULTS


@command_of(TrainBenchmarkConfig)
def train(config: TrainBenchmarkConfig) -> None:
    """Images per second of the data loader and of the training step, next to timm's own on this machine.

    Both sides get the same JPEG folders, transforms, workers, model, teacher and precision, in turns.
    """
    from rich.table import Table

    from benchmark.environment import this_environment
    from benchmark.results import append, results_file
    from benchmark.train import measure_training

    environment = this_environment()
    records = measure_training(config, environment, command=this_command())
    file = results_file(config.results, environment)
    append(file, records)
    table = Table(title=environment.machine, caption="images/s: median of the turns, with the slowest and the fastest")
    for heading in ("part", "here", "timm", "here / timm"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    for ours, timms in zip(records[::2], records[1::2], strict=True):
        figures = [record.figures["images_per_s"] for record in (ours, timms)]
        cells = [f"{figure.value:.1f} ({figure.lowest:.1f} to {figure.highest:.1f})" for figure in figures]
        table.add_row(str(ours.conditions["part"]), *cells, f"{figures[0].value / figures[1].value:.3f}")
    console.print(table)
    typer.echo(f"written to {file}")
