"""Which images the gateway saves."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Option

from deit.options import wrong
from serving.settings.panels import CAPTURE


@dataclass(frozen=True, kw_only=True)
class CaptureSettings:
    """Which images are saved with their predictions, and how many."""

    folder: Annotated[
        Path | None,
        Option(
            "--capture",
            help="Folder in which to save a sample of the images with their predictions; unset, none are saved. Set it "
            "to inspect real requests, if the callers have agreed.",
            rich_help_panel=CAPTURE,
        ),
    ] = None
    percent: Annotated[
        float,
        Option(
            "--capture-percent",
            help="Percentage of requests whose images are saved. Raise it if there are few requests.",
            rich_help_panel=CAPTURE,
        ),
    ] = 1.0
    max_images: Annotated[
        int,
        Option(
            "--capture-max-images",
            help="Maximum number of images in the folder; when it is full, saving stops until you delete some. Raise "
            "it to inspect more.",
            rich_help_panel=CAPTURE,
        ),
    ] = 10_000
    max_bytes: Annotated[
        int,
        Option(
            "--capture-max-bytes",
            help="Maximum bytes of images in the folder; when it is full, saving stops until you delete some. Raise it "
            "if the disk has room.",
            rich_help_panel=CAPTURE,
        ),
    ] = 2**30

    def __post_init__(self) -> None:
        if not 0 < self.percent <= 100:
            raise wrong("--capture-percent", self.percent, "give a share above 0, up to 100")
        for flag, count in (("--capture-max-images", self.max_images), ("--capture-max-bytes", self.max_bytes)):
            if count < 1:
                raise wrong(flag, count, "give at least 1, or leave out --capture")
