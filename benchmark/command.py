"""`deit benchmark`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmark.train_command import app as train_app

app = typer.Typer(no_args_is_help=True)
app.add_typer(train_app)


@app.callback()
def benchmark() -> None:
    """Measure a running server."""


@app.command()
def throughput(
    model: Annotated[str, typer.Option(help="Name of the model in Triton.")],
    url: Annotated[str, typer.Option(help="Triton's gRPC address.")] = "127.0.0.1:8001",
    batch_size: Annotated[list[int], typer.Option(help="Images a request. Repeatable.")] = [1, 8],  # noqa: B006
    concurrency: Annotated[list[int], typer.Option(help="Requests in flight. Repeatable.")] = [1, 8],  # noqa: B006
    requests: Annotated[int, typer.Option(min=50, help="Requests in each measured window.")] = 200,
    perf_analyzer: Annotated[
        Path, typer.Option(help="Environment that `make perf-analyzer` made.", envvar="DEIT_PERF_ANALYZER")
    ] = Path(".perf-analyzer"),
    output: Annotated[Path, typer.Option(help="Folder for perf_analyzer's CSV files.")] = Path("runs/throughput"),
) -> None:
    """Images per second of a model in Triton, by batch size and concurrency, measured by perf_analyzer."""
    from benchmark.perf_analyzer import measure

    pairs = [(batch, in_flight) for batch in batch_size for in_flight in concurrency]
    console = Console(stderr=True)
    cells = [
        measure(
            perf_analyzer,
            url=url,
            model=model,
            batch_size=batch,
            concurrency=in_flight,
            requests=requests,
            csv_file=output / f"{model}_b{batch}_c{in_flight}.csv",
        )
        for batch, in_flight in track(pairs, description="measuring", console=console, transient=True)
    ]
    table = Table(title=f"{model} at {url}", caption="latency of a request, which is a whole batch")
    for heading in ("batch", "in flight", "images/s", "p50 ms", "p95 ms", "p99 ms"):
        table.add_column(heading, justify="right")
    for cell in cells:
        if cell.stable:
            figures = [f"{value:.1f}" for value in (cell.images_per_s, cell.p50_ms, cell.p95_ms, cell.p99_ms) if value]
        else:
            figures = ["unstable", "", "", ""]
        table.add_row(str(cell.batch_size), str(cell.concurrency), *figures)
    Console().print(table)
