"""`deit benchmark strategies`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from benchmark.options import RESULTS, Results, console, this_command
from deit.options import command_of


@dataclass(frozen=True, kw_only=True)
class StrategiesConfig:
    """Which runs to judge, and on what."""

    comparison: Annotated[Path, Argument(help="TOML file of `deit compare`; see training/recipes.")]
    data: Annotated[Path, Option(help="The data set that the runs were tested on.")]
    runs: Annotated[Path, Option(help="Folder that holds the runs.")] = Path("runs")
    workers: Annotated[int, Option(min=0, help="Processes that decode.")] = 2
    device: Annotated[str, Option(help="torch's name of the device; auto: a GPU if there is one.")] = "auto"
    results: Results = RESULTS


@command_of(StrategiesConfig)
def strategies(config: StrategiesConfig) -> None:
    """Top-1 of distillation strategies over seeds, and their disagreement, to stand beside the paper's tables."""
    from rich.table import Table

    from benchmark.environment import this_environment
    from benchmark.results import append, results_file
    from studies.strategies import measure_strategies

    environment = this_environment()
    records = measure_strategies(config, environment, command=this_command())
    file = results_file(config.results, environment)
    append(file, records)
    table = Table(title=f"{config.comparison.stem}: {records[0].conditions['data']}")
    for heading in ("arm, read-out", "top-1", "lowest", "highest"):
        table.add_column(heading, justify="right")
    for record in records:
        if record.kind == "strategy":
            figure = record.figures["top1"]
            table.add_row(record.model, *(f"{value:.2%}" for value in (figure.value, figure.lowest, figure.highest)))
    console.print(table)
    typer.echo(f"written to {file}")
