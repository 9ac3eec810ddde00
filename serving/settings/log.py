"""How `deit serve` and `deit triton` log."""

from dataclasses import dataclass
from typing import Annotated

from typer import Option

from deit.log import LogFormat
from serving.settings.panels import LOG


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """How `deit serve` and `deit triton` log."""

    format: Annotated[
        LogFormat,
        Option(
            "--log-format",
            help="Format of the log on stderr. Choose json if a program reads it.",
            rich_help_panel=LOG,
        ),
    ] = "text"
