"""Options that several measurements share."""

import contextlib
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from rich.console import Console
from typer import Option

RESULTS = Path("runs/benchmark")

PerfAnalyzer = Annotated[Path, Option(help="Environment that `make perf-analyzer` made.", envvar="DEIT_PERF_ANALYZER")]
Results = Annotated[Path, Option(help="Folder whose file of today and this machine gets the measurements.")]
Rounds = Annotated[
    int, Option(min=1, help="How often everything is measured, in turns; the report tells the median and the spread.")
]
Images = Annotated[
    Path,
    Option(
        help="Photographs: an image file, a folder of them, a parquet or tar file, or a data set with a split test."
    ),
]

console = Console(stderr=True)


@dataclass(frozen=True, kw_only=True)
class Served:
    """The server to measure: one that runs, or one that is started for it."""

    model: Annotated[str, Option(help="Name of the model.")]
    serve: Annotated[
        Path | None,
        Option(help="Start `deit serve` with this model repository for the measurement and stop it afterwards."),
    ] = None
    url: Annotated[str, Option(help="The gateway's address, without --serve.")] = "http://127.0.0.1:8080"
    triton_url: Annotated[str, Option(help="Triton's gRPC address, without --serve.")] = "127.0.0.1:8001"


@contextlib.contextmanager
def addresses(config: Served) -> Iterator[tuple[str, str]]:
    """URL of the gateway and gRPC address of Triton, for as long as the block lasts."""
    if config.serve is None:
        yield config.url, config.triton_url
        return
    from benchmark.server import our_server

    with our_server(config.serve, default_model=config.model) as server:
        yield server.url, server.triton_url


def this_command(*program: str) -> str:
    """The command line, for the record; `program` is how it starts, `deit` unless given."""
    return shlex.join([*(program or ("deit",)), *sys.argv[1:]])
