"""`deit benchmark http`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from benchmark.options import RESULTS, Images, PerfAnalyzer, Results, Rounds, Served, console, this_command
from deit.options import command_of


@dataclass(frozen=True, kw_only=True)
class HttpConfig(Served):
    """Loads to put on the gateway."""

    images: Images
    concurrency: Annotated[list[int], Option(help="Requests in flight, closed loop. Repeatable.")] = field(
        default_factory=lambda: [1, 8, 32]
    )
    load: Annotated[
        list[float],
        Option(help="Share of the best closed-loop rate to offer as an open loop of random arrivals. Repeatable."),
    ] = field(default_factory=lambda: [0.5, 0.7, 0.9])
    seconds: Annotated[float, Option(min=1, help="Of each measured window, after a warm-up of two.")] = 10
    rounds: Rounds = 3
    raw: Annotated[bool, Option("--raw", help="Send the image as the body, not as a form as curl -F does.")] = False
    api_key: Annotated[str | None, Option(envvar="DEIT_API_KEY", help="For a gateway that asks for one.")] = None
    engine: Annotated[
        bool,
        Option(
            "--engine/--no-engine",
            help="Measure Triton alone beside it, by perf_analyzer, to tell how much of its rate survives.",
        ),
    ] = True
    perf_analyzer: PerfAnalyzer = Path(".perf-analyzer")
    results: Results = RESULTS

    def __post_init__(self) -> None:
        if any(not 0 < share < 2 for share in self.load):
            raise ValueError("--load: a share of the best rate, between 0 and 2")


@command_of(HttpConfig)
def http(config: HttpConfig) -> None:
    """Rate and latency of /classify with real photographs, and what it costs the machine."""
    from rich.table import Table

    from benchmark.environment import this_environment
    from benchmark.gateway import measure_http
    from benchmark.results import append, results_file

    environment = this_environment()
    records = measure_http(config, environment, command=this_command())
    file = results_file(config.results, environment)
    append(file, records)
    table = Table(title=f"{config.model} over HTTP on {environment.machine}")
    columns = {
        "images/s": "images_per_s",
        "p50 ms": "p50_ms",
        "p95 ms": "p95_ms",
        "p99 ms": "p99_ms",
        "server ms CPU/image": "server_cpu_ms_per_image",
        "client cores": "client_cores",
        "MiB": "memory_mib",
        "of engine": "engine_share",
    }
    for heading in ("loop", "load", *columns):
        table.add_column(heading, justify="right")
    for record in records:
        loop = str(record.conditions["loop"])
        load = record.conditions["concurrency" if loop == "closed" else "load"]
        figures = [record.value(name) for name in columns.values()]
        table.add_row(loop, f"{load}", *("" if each is None else f"{each:.3g}" for each in figures), record.failure)
    console.print(table)
    typer.echo(f"written to {file}")
