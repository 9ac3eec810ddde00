"""`deit evaluate`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from deit.log import configure_logging
from deit.options import command_of


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to evaluate, and on what."""

    data: Annotated[
        Path,
        Option(help="Data set with a split test (or val), one parquet or tar file, or ImageNet V2's numbered folders."),
    ]
    checkpoint: Annotated[
        str, Option(help="Checkpoint folder, timm's tagged name, or a weights file (also DeiT's .pth) with --model.")
    ]
    model: Annotated[str | None, Option(help="timm's name of the architecture of a weights file.")] = None
    crop_pct: Annotated[
        float | None,
        Option(help="Share of the shorter side that the crop keeps; the checkpoint's own unless given."),
    ] = None
    teacher: Annotated[
        str | None, Option(help="Tell how often the teacher agrees: checkpoint folder or timm's tagged name.")
    ] = None
    real: Annotated[bool, Option("--real", help="Judge ImageNet's validation images by the ReaL labels as well.")] = (
        False
    )
    output: Annotated[Path | None, Option(help="Write all numbers to this file, as JSON.")] = None
    batch_size: Annotated[int, Option(min=1)] = 256
    workers: Annotated[int, Option(min=0, help="Processes that decode.")] = 2
    device: Annotated[str, Option(help="torch's name of the device; auto: a GPU if there is one.")] = "auto"
    max_corrupt_share: Annotated[
        float, Option(min=0, max=1, help="Share of the images that may be undecodable; they are counted and skipped.")
    ] = 0.01

    def __post_init__(self) -> None:
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise ValueError(f"--crop-pct {self.crop_pct}: must be above 0 and at most 1")
        if Path(self.checkpoint).is_file() and self.model is None:
            raise ValueError(
                f"--checkpoint {self.checkpoint} does not say what it is: add --model, such as deit_tiny_patch16_224"
            )
        if not Path(self.checkpoint).is_file() and self.model is not None:
            raise ValueError(f"--checkpoint {self.checkpoint} names its architecture itself: leave --model out")


READOUT_NAMES = {
    "class": "class token",
    "distillation": "distillation token",
    "joint": "joint probability (paper)",
    "joint_logit": "joint logit (DeiT's code)",
}

app = typer.Typer()


@app.command()
@command_of(EvaluateConfig)
def evaluate(config: EvaluateConfig) -> None:
    """Tell the accuracy of every read-out of a model, and where they disagree.

    Works under torchrun: each process takes its share of the images, and the sums are exact.
    """
    configure_logging("text")
    from training.report import evaluate_checkpoint  # after parsing, so that --help and wrong usage need no torch

    report = evaluate_checkpoint(config)
    if report is None:  # another process tells
        return
    if config.output is not None:
        config.output.write_text(json.dumps(asdict(report), indent=2) + "\n")
    typer.echo(f"{report.model}: {report.checkpoint}")
    typer.echo(
        f"{report.evaluation.images} images of {config.data}, shorter side to {report.preprocessing.resize_px} pixels, "
        f"crop of {report.preprocessing.image_size} (crop_pct {report.preprocessing.crop_pct:g}), "
        f"{report.preprocessing.interpolation}; {report.corrupt_images} images left out as undecodable\n"
    )
    accuracy = report.evaluation.accuracy
    columns = [key for key in ("top1", "top5", "real_top1", "real_top5") if f"class_{key}" in accuracy]
    typer.echo(f"{'read-out':28}" + "".join(f"{column.replace('_', ' '):>11}" for column in columns))
    for readout, name in READOUT_NAMES.items():
        if f"{readout}_top1" in accuracy:
            typer.echo(f"{name:28}" + "".join(f"{accuracy[f'{readout}_{column}']:11.2%}" for column in columns))

    deciders = report.evaluation.deciders
    typer.echo("\nshare of the images decided differently\n" + " " * 14 + "".join(f"{name:>14}" for name in deciders))
    for name, row in zip(deciders, report.evaluation.disagreement, strict=True):
        typer.echo(f"{name:14}" + "".join(f"{share:14.4f}" for share in row))
