"""Throughput of one model: in Triton by perf_analyzer, in PyTorch the paper's way, beside the machine's limit."""

import hashlib
from functools import partial
from itertools import product
from pathlib import Path

from rich.progress import track

from benchmark.eager import eager_rate
from benchmark.machine_limit import REPETITIONS, machine_limit
from benchmark.options import addresses, console
from benchmark.perf_analyzer import Cell, measure
from benchmark.results import Condition, Environment, Figure, Record
from benchmark.throughput_command import ThroughputConfig
from benchmark.triton_statistics import Statistics, TritonModel
from benchmark.work import gflop_per_image, pytorch_model
from deit.checkpoint import WEIGHTS_FILE
from deit.model import Provenance
from training.processes import choose_device

Cells = dict[tuple[int, int], list[tuple[Cell, Statistics]]]


def measure_throughput(config: ThroughputConfig, environment: Environment, *, command: str) -> list[Record]:
    """A record for each cell, and with --pytorch the limit of the machine and the rates in eager PyTorch.

    Raises:
        BenchmarkError: perf_analyzer, Triton or a model is not there.
    """
    device = choose_device(config.device)
    in_pytorch = {name: pytorch_model(name) for name in config.pytorch}
    with addresses(config) as (_, triton_url):
        triton = TritonModel(triton_url, config.model)
        provenance, preprocessing = triton.description()
        cells = measure_cells(config, triton, triton_url)

    record = partial(Record, command=command, environment=environment)
    records = []
    # The products are those of the CPU; on a GPU no share is told.
    limits = limits_of({"fp32", provenance.precision}, environment.cores) if in_pytorch and device.type == "cpu" else {}
    gflop_of = {name: gflop_per_image(*model) for name, model in in_pytorch.items()}
    in_triton = next(
        (
            gflop_of[name]
            for name, (_, image_size) in in_pytorch.items()
            if image_size == preprocessing.image_size and is_made_from(name, provenance)
        ),
        None,
    )

    def share(rate: Figure, gflop: float | None, precision: str) -> dict[str, Figure]:
        if gflop is None or precision not in limits:
            return {}
        return {"limit_share": Figure(value=rate.value * gflop / limits[precision].value, unit="share")}

    for name, (model, image_size) in in_pytorch.items():
        for precision, limit in limits.items():
            figures = {"gflop_per_s": limit, "gflop_per_image": Figure(value=gflop_of[name], unit="GFLOP")}
            records.append(record(kind="machine_limit", model=name, precision=precision, figures=figures))
        eager = eager_rate(model, image_size, device)
        rate = Figure(
            value=eager.images_per_s, unit="images/s", lowest=eager.lowest, highest=eager.highest, runs=eager.runs
        )
        conditions: dict[str, Condition] = {"batch_size": eager.batch_size, "device": device.type, "pytorch": name}
        figures = {"images_per_s": rate, **share(rate, gflop_of[name], "fp32")}
        records.append(record(kind="eager", model=name, precision="fp32", conditions=conditions, figures=figures))
    for (batch_size, concurrency), rounds in cells.items():
        figures, failure = figures_of(rounds)
        if figures:
            figures |= share(figures["images_per_s"], in_triton, provenance.precision)
        conditions = {"batch_size": batch_size, "concurrency": concurrency, "client": "perf_analyzer"}
        records.append(
            record(
                kind="throughput",
                model=config.model,
                precision=provenance.precision,
                conditions=conditions,
                figures=figures,
                failure=failure,
            )
        )
    return records


def measure_cells(config: ThroughputConfig, triton: TritonModel, url: str) -> Cells:
    """What perf_analyzer and Triton told in each round, by batch size and concurrency."""
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


def is_made_from(name: str, provenance: Provenance) -> bool:
    """Whether a served model was exported from this one: the same weights file, or timm's architecture."""
    if Path(name).is_dir():
        with (Path(name) / WEIGHTS_FILE).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == provenance.checkpoint_sha256
    return name.partition(".")[0] == provenance.architecture.partition(".")[0]


def limits_of(precisions: set[str], threads: int) -> dict[str, Figure]:
    """By precision the rate of the matrix product that runs fastest, with as many threads as the machine has cores."""
    rates = machine_limit(threads, precisions=tuple(sorted(precisions & {"fp32", "bf16", "int8"})))
    limits: dict[str, Figure] = {}
    for rate in sorted(rates, key=lambda rate: rate.gops_median):
        limits[rate.precision] = Figure(
            value=rate.gops_median, unit="GFLOP/s", highest=rate.gops_best, runs=REPETITIONS
        )
    return limits


def figures_of(rounds: list[tuple[Cell, Statistics]]) -> tuple[dict[str, Figure], str | None]:
    """The figures of the stable rounds of one cell; when there are none, why."""
    stable = [(cell, statistics) for cell, statistics in rounds if cell.stable]
    if not stable:
        return {}, "unstable: no three windows of perf_analyzer agreed within 15 %"
    figures = {
        name: Figure.of([value for cell, _ in stable if (value := getattr(cell, name)) is not None], unit)
        for name, unit in (("images_per_s", "images/s"), ("p50_ms", "ms"), ("p95_ms", "ms"), ("p99_ms", "ms"))
    }
    figures["mean_batch"] = Figure.of([statistics.mean_batch for _, statistics in stable], "images")
    for stage in ("queue", "compute_infer"):
        figures[f"triton_{stage}_ms"] = Figure.of([statistics.mean_ms(stage) for _, statistics in stable], "ms")
    return figures, None
