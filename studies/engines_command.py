"""`deit benchmark engines`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from benchmark.options import RESULTS, PerfAnalyzer, Results, Rounds, console, this_command
from deit.options import command_of


@dataclass(frozen=True, kw_only=True)
class EnginesConfig:
    """Which models of a repository to compare, and how."""

    model: Annotated[list[str], Option(help="Name of a model. Repeatable.")]
    model_repository: Annotated[Path, Option(help="Folder of the models, for which `deit serve` is started.")] = Path(
        "model_repository"
    )
    batch_size: Annotated[list[int], Option(help="Images a request. Repeatable.")] = field(
        default_factory=lambda: [8, 32]
    )
    concurrency: Annotated[int, Option(min=1, help="Requests in flight.")] = 4
    requests: Annotated[int, Option(min=50, help="Requests in each measured window.")] = 50
    rounds: Rounds = 3
    perf_analyzer: PerfAnalyzer = Path(".perf-analyzer")
    csv: Annotated[Path, Option(help="Folder for perf_analyzer's CSV files.")] = Path("runs/engines")
    results: Results = RESULTS


@command_of(EnginesConfig)
def engines(config: EnginesConfig) -> None:
    """Images per second of models in Triton, of their engines alone, and the machine's limit, in one run."""
    from rich.table import Table

    from benchmark.environment import this_environment
    from benchmark.results import append, results_file
    from studies.engines import measure_engines

    environment = this_environment()
    records = measure_engines(config, environment, command=this_command())
    file = results_file(config.results, environment)
    append(file, records)
    table = Table(title=environment.machine, caption=f"images/s, median of {config.rounds} rounds")
    for heading in ("model", "engine", "batch", "in Triton", "low", "high", "alone", "of alone", "limit", "of limit"):
        table.add_column(heading, justify="left" if heading in ("model", "engine") else "right")
    for record in records:
        start = (record.model, str(record.conditions["engine"]), str(record.conditions["batch_size"]))
        if record.failure is not None:
            table.add_row(*start, record.failure)
            continue
        rate = record.figures["images_per_s"]
        rates = (rate.value, rate.lowest, rate.highest, record.value("alone_images_per_s"))
        limit, share = record.value("limit_images_per_s"), record.value("limit_share")
        table.add_row(
            *start,
            *(f"{each:.1f}" for each in rates),
            f"{record.value('alone_share'):.0%}",
            f"{limit:.1f}",
            f"{share:.0%}",
        )
    console.print(table)
    typer.echo(f"written to {file}")
