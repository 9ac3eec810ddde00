"""Our own experiments, which the wheel leaves out. `python -m studies.NAME --help` describes each."""

import sys

import typer

from deit.errors import DeitError


def run_study(app: typer.Typer) -> None:
    """Run a study's command. An error of ours is one line on stderr, with exit status 1."""
    try:
        app()
    except DeitError as error:
        sys.exit(f"studies: {error}")
