"""`deit benchmark train`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer()


@app.command()
def train(
    images: Annotated[Path, typer.Option(help="Photographs: a data set with a split test, or one parquet file.")],
    rounds: Annotated[int, typer.Option(min=1, help="Turns that each side gets, one after the other.")] = 5,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode and augment.")] = 2,
    loader_images: Annotated[int, typer.Option(min=64, help="Images each loader reads in a turn.")] = 2000,
    batch_size: Annotated[int, typer.Option(min=2, help="Images a step.")] = 32,
    steps: Annotated[int, typer.Option(min=0, help="Training steps in a turn; 0 measures the loaders only.")] = 5,
    model: Annotated[str, typer.Option(help="The student, timm's name.")] = "deit_tiny_distilled_patch16_224",
    teacher: Annotated[str, typer.Option(help="The teacher, timm's name; its weights are random.")] = "resnet18",
    precision: Annotated[Literal["auto", "bf16", "fp32"], typer.Option(help="As of `deit train`.")] = "auto",
    output: Annotated[Path | None, typer.Option(help="Append the figures to this file, a JSON object a line.")] = None,
) -> None:
    """Images per second of the data loader and of the training step, next to timm's own on this machine.

    Both sides get the same JPEG folders, transforms, workers, model, teacher and precision, in turns.
    """
    from benchmark.train import measure_training  # after parsing, so that --help needs no torch

    figures = measure_training(
        images,
        rounds=rounds,
        workers=workers,
        loader_images=loader_images,
        batch_size=batch_size,
        steps=steps,
        model=model,
        teacher=teacher,
        precision=precision,
    )
    table = Table(caption="median of the turns, with the slowest and the fastest")
    for heading in ("images/s", "here", "timm", "here / timm"):
        table.add_column(heading, justify="left" if heading == "images/s" else "right")
    for what in dict.fromkeys(figure.what for figure in figures):
        ours, timms = (next(f for f in figures if (f.what, f.whose) == (what, whose)) for whose in ("here", "timm"))
        cells = [f"{f.images_per_s:.1f} ({min(f.turns):.1f} to {max(f.turns):.1f})" for f in (ours, timms)]
        table.add_row(what, *cells, f"{ours.images_per_s / timms.images_per_s:.3f}")
    Console().print(table)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("a") as file:
            file.writelines(json.dumps(asdict(figure)) + "\n" for figure in figures)
