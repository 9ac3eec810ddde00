"""`deit benchmark throughput`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from benchmark.options import RESULTS, PerfAnalyzer, Results, Rounds, Served, console, this_command
from deit.options import command_of


@dataclass(frozen=True, kw_only=True)
class ThroughputConfig(Served):
    """Cells to measure in Triton, and models to measure beside it in PyTorch."""

    batch_size: Annotated[list[int], Option(help="Images a request. Repeatable.")] = field(
        default_factory=lambda: [1, 8]
    )
    concurrency: Annotated[list[int], Option(help="Requests in flight. Repeatable.")] = field(
        default_factory=lambda: [1, 8]
    )
    requests: Annotated[int, Option(min=50, help="Requests in each measured window.")] = 200
    rounds: Rounds = 1
    pytorch: Annotated[
        list[str],
        Option(
            help="A model to measure the paper's way as well: a checkpoint folder or timm's name. When it is the same "
            "as the one in Triton, its arithmetic tells both shares of the machine's limit. Repeatable."
        ),
    ] = field(default_factory=list)
    device: Annotated[str, Option(help="torch's name of the device; auto: a GPU if there is one.")] = "auto"
    perf_analyzer: PerfAnalyzer = Path(".perf-analyzer")
    csv: Annotated[Path, Option(help="Folder for perf_analyzer's CSV files.")] = Path("runs/throughput")
    results: Results = RESULTS


@command_of(ThroughputConfig)
def throughput(config: ThroughputConfig) -> None:
    """Images per second of a model in Triton, by batch size and concurrency, measured by perf_analyzer.

    With --pytorch also the paper's way (the largest batch, the mean of 30 runs) and the machine's limit.
    """
    from rich.table import Table

    from benchmark.environment import this_environment
    from benchmark.results import append, results_file
    from benchmark.throughput import measure_throughput

    environment = this_environment()
    records = measure_throughput(config, environment, command=this_command())
    file = results_file(config.results, environment)
    append(file, records)
    table = Table(title=f"{config.model} on {environment.machine}", caption="latency of a request, a whole batch")
    for heading in ("kind", "batch", "in flight", "images/s", "p50 ms", "p95 ms", "p99 ms", "mean batch", "of limit"):
        table.add_column(heading, justify="right")
    for record in records:
        figures = [record.value(name) for name in ("images_per_s", "p50_ms", "p95_ms", "p99_ms", "mean_batch")]
        share = record.value("limit_share")
        table.add_row(
            record.kind,
            *(str(record.conditions.get(name, "")) for name in ("batch_size", "concurrency")),
            *("" if each is None else f"{each:.1f}" for each in figures),
            record.failure or ("" if share is None else f"{share:.0%}"),
        )
    console.print(table)
    typer.echo(f"written to {file}")
