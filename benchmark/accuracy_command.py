"""`deit benchmark accuracy`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from benchmark.options import RESULTS, Results, Served, console, this_command
from deit.options import command_of

WAYS = ("pytorch", "onnx", "triton", "http")


@dataclass(frozen=True, kw_only=True)
class AccuracyConfig(Served):
    """What to judge, on what, and through which ways."""

    data: Annotated[
        Path, Option(help="Data set with a split test (or val), a parquet or tar file, or ImageNet V2's folders.")
    ]
    way: Annotated[
        list[str], Option(help="How the model is asked: onnx, triton, http, and pytorch with --checkpoint. Repeatable.")
    ] = field(default_factory=lambda: ["onnx", "triton", "http"])
    variant: Annotated[
        list[str],
        Option(help="Other models of the repository to compare it with, such as its int8 variant. Repeatable."),
    ] = field(default_factory=list)
    model_repository: Annotated[Path, Option(help="Folder of the models, for the way onnx.")] = Path("model_repository")
    checkpoint: Annotated[
        Path | None, Option(help="Checkpoint folder, or a weights file with --architecture, for the way pytorch.")
    ] = None
    architecture: Annotated[str | None, Option(help="timm's name of the architecture of a weights file.")] = None
    real: Annotated[bool, Option("--real", help="Judge ImageNet's validation images by the ReaL labels as well.")] = (
        False
    )
    count: Annotated[int | None, Option(min=1, help="Only the first so many images.")] = None
    page: Annotated[
        Path | None, Option(help="Write every wrong answer with its picture to this HTML file; large for many images.")
    ] = None
    results: Results = RESULTS

    def __post_init__(self) -> None:
        if unknown := set(self.way) - set(WAYS):
            raise ValueError(f"--way {', '.join(sorted(unknown))}: known are {', '.join(WAYS)}")
        if ("pytorch" in self.way) != (self.checkpoint is not None):
            raise ValueError("--way pytorch and --checkpoint go together")
        if not self.way:
            raise ValueError("--way: give at least one")


@command_of(AccuracyConfig)
def accuracy(config: AccuracyConfig) -> None:
    """How often a model is right, asked in several ways, and where they and its variants differ."""
    from rich.table import Table

    from benchmark.accuracy import measure_accuracy
    from benchmark.environment import this_environment
    from benchmark.results import append, results_file
    from benchmark.wrong_answers import write_page

    environment = this_environment()
    judged = measure_accuracy(config, environment, command=this_command())
    file = results_file(config.results, environment)
    append(file, judged.records)
    table = Table(title=f"{config.model}: {judged.records[0].conditions['count']} images of {config.data.name}")
    figures = ("top1", "top5", "real_top1", "real_top5", "disagreement", "max_difference")
    for heading in ("model", "way", *figures):
        table.add_column(heading.replace("_", " "), justify="right")
    for record in judged.records:
        shown = (
            "" if (value := record.value(name)) is None else f"{value:.2e}" if "diff" in name else f"{value:.2%}"
            for name in figures
        )
        table.add_row(record.model, str(record.conditions["way"]), *shown)
    console.print(table)
    if config.page is not None:
        write_page(config.page, judged)
        typer.echo(f"wrong answers in {config.page}")
    typer.echo(f"written to {file}")
