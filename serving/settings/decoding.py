"""How the gateway decodes images, and in how many processes."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from typer import Option

from deit.allowance import usable_cores, usable_memory_bytes
from deit.options import wrong
from serving.settings.panels import GATEWAY

DECODER_BYTES = 32 * 2**20
"""A little more than the memory of an idle decoding process."""

MOST_DECODERS = 32
"""With more, the gateway, a single process, is the bottleneck."""


def decoders_for(cores: int, memory_bytes: int | None) -> int:
    """One more than there are cores, because large images keep at most as many busy as there are cores.

    But no more than fit, when idle, into a quarter of the memory, and at least two, so that one stays free of large
    images.
    """
    fitting = MOST_DECODERS if memory_bytes is None else memory_bytes // 4 // DECODER_BYTES
    return max(2, min(cores + 1, fitting, MOST_DECODERS))


def decoders_here() -> int:
    return decoders_for(usable_cores(), usable_memory_bytes())


DecodingMode = Literal["exact", "fast"]


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How images are decoded."""

    processes: Annotated[
        int,
        Option(
            "--decoders",
            help="Processes that decode images. Lower it to save memory.",
            show_default="one more than cores, up to 32, in at most a quarter of the memory",
            rich_help_panel=GATEWAY,
        ),
    ] = field(default_factory=decoders_here)
    mode: Annotated[
        DecodingMode,
        Option(
            "--decode",
            help="fast resizes with SIMD instructions, within 2 of 255 levels of Pillow, and scales large JPEGs down "
            "while decoding; exact gives the pixels of Pillow and timm. Choose exact to compare bit by bit.",
            rich_help_panel=GATEWAY,
        ),
    ] = "fast"

    def __post_init__(self) -> None:
        if not 1 <= self.processes <= 256:
            raise wrong(
                "--decoders", self.processes, "give 1 to 256, or leave it out for one more than cores, up to 32"
            )
