"""`deit export`."""

import typer

from deit.log import configure_logging
from deit.options import command_of
from export.config import ExportConfig

app = typer.Typer(add_completion=False)


@app.command()
@command_of(ExportConfig)
def export(config: ExportConfig) -> None:
    """Turn a checkpoint into a verified model in a Triton model repository.

    The graph takes uint8 images and gives the mean of both heads' softmax. It
    is published only if its probabilities match PyTorch's on real images.
    """
    configure_logging("text")
    from export.pipeline import export_models  # after parsing, so that --help and wrong usage need no torch

    for folder in export_models(config):
        print(folder)
