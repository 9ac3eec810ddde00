"""`deit benchmark engines`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def engines(
    model: Annotated[list[str], typer.Option(help="Name of a model that Triton serves. Repeatable.")],
    repository: Annotated[Path, typer.Option(help="The repository that Triton serves.")] = Path("model_repository"),
    url: Annotated[str, typer.Option(help="Triton's gRPC address.")] = "127.0.0.1:8001",
    batch_size: Annotated[list[int], typer.Option(help="Images a request. Repeatable.")] = [8, 32],  # noqa: B006
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight.")] = 4,
    requests: Annotated[int, typer.Option(min=50, help="Requests in each measured window.")] = 50,
    rounds: Annotated[int, typer.Option(min=1, help="How often everything is measured, in turns.")] = 3,
    perf_analyzer: Annotated[
        Path, typer.Option(help="Environment that `make perf-analyzer` made.", envvar="DEIT_PERF_ANALYZER")
    ] = Path(".perf-analyzer"),
    output: Annotated[Path, typer.Option(help="Folder for the CSV files and the result.")] = Path("runs/engines"),
) -> None:
    """Images per second of models in Triton, of their engines alone, and the machine's limit, in one run."""
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table

    from benchmark.engines import compare_engines

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measuring", total=1 + rounds * len(batch_size) * len(model))
        rows = compare_engines(
            repository,
            model,
            url=url,
            perf_analyzer=perf_analyzer,
            batch_sizes=batch_size,
            concurrency=concurrency,
            requests=requests,
            rounds=rounds,
            output=output,
            on_step=lambda: progress.advance(task),
        )
    table = Table(caption=f"images/s, median of {rounds} rounds; the limit is that of the products alone")
    for heading in ("model", "precision", "engine", "batch", "in Triton", "low", "high", "alone", "limit", "of it"):
        table.add_column(heading, justify="left" if heading in ("model", "precision", "engine") else "right")
    for row in rows:
        figures = [f"{value:.1f}" if value else "unstable" for value in (row.served, row.worst, row.best, row.alone)]
        share = f"{row.served / row.limit:.0%}" if row.served else ""
        table.add_row(row.model, row.precision, row.engine, str(row.batch_size), *figures, f"{row.limit:.1f}", share)
    Console().print(table)
    (output / "engines.json").write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
