"""`deit step-cost`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Option

from deit.log import configure_logging
from deit.options import command_of


@dataclass(frozen=True, kw_only=True)
class CostConfig:
    """The pair whose steps are measured, and how often."""

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


app = typer.Typer()


@app.command("step-cost")
@command_of(CostConfig)
def step_cost(config: CostConfig) -> None:
    """Measure time and memory of a training step under each loss, and what it has more than one without a teacher.

    A step is: teacher, student, loss, gradient, clipping, update; on random images, without a data loader.
    """
    configure_logging("text")
    from studies.cost import cost_table, measure_losses  # after parsing, so that --help needs no torch

    table = cost_table(config, measure_losses(config))
    typer.echo(table)
    if config.output is not None:
        config.output.write_text(table + "\n")
