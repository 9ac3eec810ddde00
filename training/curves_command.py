"""`deit curves`."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command()
def curves(
    logs: Annotated[list[Path], typer.Argument(help="metrics.jsonl of one or more runs.")],
    output: Annotated[Path, typer.Option(help="File to write: .svg, .png or .pdf.")] = Path("curves.svg"),
) -> None:
    """Draw the loss and the accuracy of training runs, epoch by epoch."""
    if output.suffix not in (".svg", ".png", ".pdf"):
        raise typer.BadParameter(f"--output {output}: must end in .svg, .png or .pdf")
    from training.curves import draw_curves  # after parsing, so that --help needs no matplotlib

    draw_curves(logs, output)
    print(output)
