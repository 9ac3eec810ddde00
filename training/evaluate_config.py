"""The options of `deit evaluate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What to evaluate, and on what."""

    data: Annotated[
        Path,
        Option(help="Data set with a split test (or val), one parquet or tar file, or ImageNet V2's numbered folders."),
    ]
    checkpoint: Annotated[
        str, Option(help="Checkpoint folder, timm name with tag, or weights file (DeiT's .pth too) with --model.")
    ]
    model: Annotated[str | None, Option(help="Architecture of a weights file, by its timm name.")] = None
    crop_pct: Annotated[
        float | None,
        Option(help="Share of the shorter side that the crop keeps. Default: the checkpoint's."),
    ] = None
    teacher: Annotated[
        str | None, Option(help="Also report how often this teacher agrees: checkpoint folder or timm name with tag.")
    ] = None
    real: Annotated[bool, Option("--real", help="Also judge ImageNet's validation images by the ReaL labels.")] = False
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
        if Path(self.checkpoint).is_file() and self.model is None:
            raise ValueError(
                f"--checkpoint {self.checkpoint} does not say what it is: add --model, such as deit_tiny_patch16_224"
            )
        if not Path(self.checkpoint).is_file() and self.model is not None:
            raise ValueError(f"--checkpoint {self.checkpoint} names its architecture itself: leave --model out")
