"""`deit compare`."""

from pathlib import Path
from typing import Annotated

import typer

from deit.log import configure_logging

app = typer.Typer()


@app.command()
def compare(
    comparison: Annotated[Path, typer.Argument(help="TOML file with arms and claims; see training/recipes.")],
    data: Annotated[Path, typer.Option(help="The data set that the runs were tested on.")],
    output: Annotated[Path, typer.Option(help="The Markdown file to write.")],
    runs: Annotated[Path, typer.Option(help="Folder that holds the runs.")] = Path("runs"),
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode.")] = 2,
    device: Annotated[str, typer.Option(help="torch's name of the device; auto: a GPU if there is one.")] = "auto",
) -> None:
    """Compare arms of finished runs over the same seeds: read-outs, paired differences, disagreement, cosines.

    Tells of each claim whether the seeds reproduce it, contradict it or do not resolve it.
    """
    configure_logging("text")
    from studies.comparison_report import write_report  # after parsing, so that --help needs no torch

    write_report(comparison, data=data, runs_folder=runs, output=output, workers=workers, device_name=device)
    print(output)
