"""`deit benchmark`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

app = typer.Typer(no_args_is_help=True)


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


@app.command()
def decoding(
    images: Annotated[Path, typer.Option(help="Photographs: a parquet file or a folder, as `deit export` takes them.")],
    processes: Annotated[list[int], typer.Option(help="How many decoders. Repeatable.")] = [1, 2, 3, 4],  # noqa: B006
    concurrency: Annotated[list[int], typer.Option(help="Images in flight. Repeatable.")] = [1, 8],  # noqa: B006
    duration_s: Annotated[float, typer.Option(min=0.1, help="Seconds for each row.")] = 10.0,
    count: Annotated[int, typer.Option(min=1, help="How many photographs to take.")] = 200,
) -> None:
    """Images per second that the gateway's decoders prepare, and how late that makes its event loop."""
    import asyncio

    from benchmark.decoding import in_processes, in_threads
    from training.images import open_images

    photographs = open_images(images, "test")
    contents = [photographs.encoded(index) for index in range(min(count, len(photographs)))]
    table = Table(title=f"{len(contents)} photographs to 224 pixels")
    for heading in ("decoders", "in flight", "images/s", "p50 ms", "p99 ms", "event loop p99 ms"):
        table.add_column(heading, justify="right")
    for in_flight in concurrency:
        load = {"concurrency": in_flight, "duration_s": duration_s}
        runs = {f"{each} threads": in_threads(contents, threads=each, **load) for each in processes[-1:]}
        for mode in ("exact", "fast"):
            for each in processes:
                runs[f"{each} {mode}"] = in_processes(contents, processes=each, mode=mode, **load)
        for name, run in runs.items():
            result = asyncio.run(run)
            figures = (result.images_per_s, result.p50_ms, result.p99_ms, result.lag_p99_ms)
            table.add_row(name, str(in_flight), *(f"{figure:.1f}" for figure in figures))
    Console().print(table)
