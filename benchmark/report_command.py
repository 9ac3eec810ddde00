"""`deit benchmark report`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from benchmark.options import RESULTS
from deit.options import command_of


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What to tell, and where."""

    results: Annotated[Path, Option(help="Folder of the result files.")] = RESULTS
    output: Annotated[Path, Option(help="Folder for report.md and report.html.")] = RESULTS
    machine: Annotated[
        str | None, Option(help="Which machine, as the results name it; without it, the one measured last.")
    ] = None
    document: Annotated[
        list[Path],
        Option(help="Write the measured blocks of this document too, such as README.md. Repeatable."),
    ] = field(default_factory=list)
    images: Annotated[Path, Option(help="Folder for the documents' pictures.")] = Path("docs/images")


@command_of(ReportConfig)
def report(config: ReportConfig) -> None:
    """Tables and pictures of what was measured, as Markdown and as one HTML page. Measures nothing."""
    from benchmark.report import filled, image_folder, markdown, page, read_report
    from deit.durable import write_file

    found = read_report(config.results, config.machine)
    for path, content in (
        (config.output / "report.md", markdown(found)),
        (config.output / "report.html", page(found)),
        *(
            (document, filled(document.read_text(), found, images=image_folder(document, config.images)))
            for document in config.document
        ),
        *((config.images / f"{name}.svg", svg) for name, svg in found.pictures.items() if config.document),
    ):
        write_file(path, content)
        typer.echo(f"wrote {path}")
