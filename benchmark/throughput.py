"""Throughput of one model: in Triton by perf_analyzer, and in PyTorch the paper's way."""

from itertools import product

from rich.progress import track

from benchmark.config import ThroughputConfig
from benchmark.outcome import console
from benchmark.perf_analyzer import NEVER_STABLE, PerfAnalyzerRun, measure
from benchmark.results import Figure, Result
from benchmark.server import addresses
from benchmark.triton_statistics import Statistics, TritonModel

Cells = dict[tuple[int, int], list[tuple[PerfAnalyzerRun | None, Statistics]]]


def measure_throughput(config: ThroughputConfig) -> list[Result]:
    """A result for each cell, and with --pytorch one for each model in eager PyTorch.

    Raises:
        BenchmarkError: perf_analyzer, Triton or a model is missing.
    """
    results: list[Result] = []
    if config.pytorch:
        from benchmark.eager import measure_eager  # torch, which the image that only asks Triton does not have

        results += measure_eager(config.pytorch, config.device)
    with addresses(config) as (_, triton_url):
        triton = TritonModel(triton_url, config.model)
        provenance, _ = triton.description()
        cells = measure_cells(config, triton, triton_url)

    for (batch_size, concurrency), rounds in cells.items():
        figures, failure = figures_of(rounds)
        results.append(
            Result(
                kind="throughput",
                model=config.model,
                precision=provenance.precision,
                conditions={"batch_size": batch_size, "concurrency": concurrency, "client": "perf_analyzer"},
                figures=figures,
                failure=failure,
            )
        )
    return results


def measure_cells(config: ThroughputConfig, triton: TritonModel, url: str) -> Cells:
    """What perf_analyzer and Triton reported in each round, by batch size and concurrency."""
    pairs = list(product(config.batch_size, config.concurrency))
    cells: Cells = {pair: [] for pair in pairs}
    for round_, (batch_size, concurrency) in track(
        list(product(range(config.rounds), pairs)), description="measuring", console=console, transient=True
    ):
        before = triton.statistics()
        cell = measure(
            config.perf_analyzer,
            url=url,
            model=config.model,
            batch_size=batch_size,
            concurrency=concurrency,
            requests=config.requests,
            csv_file=config.csv / f"{config.model}_b{batch_size}_c{concurrency}_r{round_}.csv",
        )
        cells[batch_size, concurrency].append((cell, triton.statistics() - before))
    return cells


def figures_of(rounds: list[tuple[PerfAnalyzerRun | None, Statistics]]) -> tuple[dict[str, Figure], str | None]:
    """The figures of the stable rounds of one cell; when there are none, why."""
    stable = [(cell, statistics) for cell, statistics in rounds if cell is not None]
    if not stable:
        return {}, NEVER_STABLE
    figures = {
        name: Figure.of([getattr(cell, name) for cell, _ in stable], unit)
        for name, unit in (("images_per_s", "images/s"), ("p50_ms", "ms"), ("p95_ms", "ms"), ("p99_ms", "ms"))
    }
    figures["mean_batch"] = Figure.of([statistics.mean_batch for _, statistics in stable], "images")
    for stage in ("queue", "compute_infer"):
        figures[f"triton_{stage}_ms"] = Figure.of([statistics.mean_ms(stage) for _, statistics in stable], "ms")
    return figures, None
