"""The options of `deit evaluate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from typer import Option

from deit.options import MODEL_SOURCES
from training.columns import IMAGE_COLUMN_HELP, LABEL_COLUMN_HELP


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    data: Annotated[
        Path,
        Option(help="Data set with a split test (or val), one parquet, tar or CSV file, or ImageNet V2's folders."),
    ]
    split: Annotated[
        Literal["test", "val"] | None,
        Option(help="Split to evaluate on. Default: test, or val if there is no labelled test."),
    ] = None
    val_share: Annotated[
        float,
        Option(min=0, max=0.9, help="Evaluate the images that `deit train` holds out with this --val-share."),
    ] = 0.0
    image_column: Annotated[str | None, Option(help=IMAGE_COLUMN_HELP)] = None
    label_column: Annotated[str | None, Option(help=LABEL_COLUMN_HELP)] = None
    checkpoint: Annotated[str, Option(help=f"The model: {MODEL_SOURCES}.")]
    architecture: Annotated[
        str | None, Option(help="timm's name of the architecture, for a weights file that does not give it.")
    ] = None
    crop_pct: Annotated[
        float | None,
        Option(help="Share of the shorter side that the crop keeps. Default: the checkpoint's."),
    ] = None
    teacher: Annotated[str | None, Option(help=f"Also report how often this teacher agrees: {MODEL_SOURCES}.")] = None
    real: Annotated[bool, Option("--real", help="Also evaluate ImageNet's validation images with ReaL labels.")] = False
    output: Annotated[Path | None, Option(help="Write all numbers to this file, as JSON.")] = None
    batch_size: Annotated[int, Option(min=1, help="Images computed at once. Lower it if memory runs out.")] = 256
    workers: Annotated[
        int, Option(min=0, help="Processes that decode. Raise it if the machine has cores to spare.")
    ] = 2
    device: Annotated[str, Option(help="torch device, such as cuda:1. auto: a GPU if there is one.")] = "auto"
    max_corrupt_share: Annotated[
        float, Option(min=0, max=1, help="Share of images that may be undecodable; they are counted and skipped.")
    ] = 0.01

    def __post_init__(self) -> None:
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise ValueError(f"--crop-pct {self.crop_pct}: must be above 0 and at most 1")
        if self.val_share and self.split is not None:
            raise ValueError("--val-share evaluates training images and --split others: give one of them")
