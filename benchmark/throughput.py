"""Throughput of one model: in Triton by perf_analyzer, in PyTorch the paper's way, beside the machine's limit."""

from collections.abc import Callable
from functools import partial
from itertools import product

from rich.progress import track

from benchmark.eager import eager_rate
from benchmark.machine_limit import REPETITIONS, machine_limit
from benchmark.options import addresses, console
from benchmark.perf_analyzer import Cell, measure
from benchmark.results import Environment, Figure, Record
from benchmark.throughput_command import ThroughputConfig
from benchmark.triton_statistics import Statistics, TritonModel
from benchmark.work import gflop_per_image, pytorch_model
from training.processes import choose_device


def measure_throughput(config: ThroughputConfig, environment: Environment, *, command: str) -> list[Record]:
    """A record for each cell, and with --pytorch the limit of the machine and the rate in eager PyTorch.

    Raises:
        BenchmarkError: perf_analyzer, Triton or the model are not there.
    """
    pairs = list(product(config.batch_size, config.concurrency))
    cells: dict[tuple[int, int], list[tuple[Cell, Statistics]]] = {pair: [] for pair in pairs}
    with addresses(config) as (_, triton_url):
        triton = TritonModel(triton_url, config.model)
        precision = triton.precision()
        for round_, (batch_size, concurrency) in track(
            list(product(range(config.rounds), pairs)), description="measuring", console=console, transient=True
        ):
            before = triton.statistics()
            cell = measure(
                config.perf_analyzer,
                url=triton_url,
                model=config.model,
                batch_size=batch_size,
                concurrency=concurrency,
                requests=config.requests,
                csv_file=config.csv / f"{config.model}_b{batch_size}_c{concurrency}_r{round_}.csv",
            )
            cells[batch_size, concurrency].append((cell, triton.statistics() - before))

    record = partial(Record, model=config.model, command=command, environment=environment)
    records: list[Record] = []
    share: Callable[[Figure, str], dict[str, Figure]] = lambda rate, precision: {}  # noqa: E731
    if config.pytorch is not None:
        device = choose_device(config.device)
        model, image_size = pytorch_model(config.pytorch)
        gflop = gflop_per_image(model, image_size)
        # The products are those of the CPU; on a GPU no share is told.
        limits = limits_of({"fp32", precision}, environment.cores) if device.type == "cpu" else {}
        for each, limit in limits.items():
            records.append(
                record(
                    kind="machine_limit",
                    precision=each,
                    conditions={"device": device.type},
                    figures={"gflop_per_s": limit, "gflop_per_image": Figure(value=gflop, unit="GFLOP")},
                )
            )

        def share(rate: Figure, precision: str) -> dict[str, Figure]:
            if precision not in limits:
                return {}
            return {"limit_share": Figure(value=rate.value * gflop / limits[precision].value, unit="share")}

        eager = eager_rate(model, image_size, device)
        rate = Figure(
            value=eager.images_per_s, unit="images/s", lowest=eager.lowest, highest=eager.highest, runs=eager.runs
        )
        records.append(
            record(
                kind="eager",
                precision="fp32",
                conditions={"pytorch": config.pytorch, "batch_size": eager.batch_size, "device": device.type},
                figures={"images_per_s": rate, **share(rate, "fp32")},
            )
        )
    for (batch_size, concurrency), rounds in cells.items():
        figures, failure = figures_of(rounds)
        if figures:
            figures |= share(figures["images_per_s"], precision)
        records.append(
            record(
                kind="throughput",
                precision=precision,
                conditions={"batch_size": batch_size, "concurrency": concurrency, "client": "perf_analyzer"},
                figures=figures,
                failure=failure,
            )
        )
    return records


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
