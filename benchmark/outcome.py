"""Writes a measurement's results to a file of today and this machine, and its tables to the terminal."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import rich.table
import typer
from rich.console import Console

from benchmark.results import Environment, Result, append, recorded, results_file
from benchmark.tables import failures, tables

console = Console(stderr=True)


def keep(results: Sequence[Result], environment: Environment, folder: Path, *program: str) -> None:
    """Add the results to the folder's file, and show their tables and failures.

    Args:
        environment: as it was before the measurement, which loads the machine.
        program: how the command line starts; `deit` unless given.
    """
    records = recorded(results, environment, shlex.join([*(program or ("deit",)), *sys.argv[1:]]))
    file = results_file(folder, environment)
    append(file, records)
    for table in tables(records).values():
        shown = rich.table.Table(title=f"{table.title}: {environment.machine}", caption=table.note)
        for place, heading in enumerate(table.headings):
            shown.add_column(heading, justify="right" if place else "left")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)
    for failure in failures(records):
        console.print(failure)
    typer.echo(f"written to {file}")
