"""The gateway under load: rate, also as a share of Triton's, latency, time by stage, cost of client and server."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from rich.progress import Progress

from benchmark.config import HttpConfig
from benchmark.images import read_photographs
from benchmark.load import Load, closed_loop, open_loop, requests_of
from benchmark.outcome import console
from benchmark.perf_analyzer import measure
from benchmark.processes import ServerProcesses, Use, watched
from benchmark.results import Condition, Figure, Result
from benchmark.server import CLASSIFY, addresses
from benchmark.triton_statistics import DURATIONS, Statistics, TritonModel
from deit.errors import BenchmarkError

WARM_UP_S = 2.0

IMAGES = 256
"""Photographs, sent in turns; more would only take memory."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One window of load."""

    load: Load
    used: dict[str, float]
    memory_mib: float
    triton: Statistics


def measure_http(config: HttpConfig) -> list[Result]:
    """A result for each concurrency, and one for each load of the open loop.

    Raises:
        BenchmarkError, DataError: the server, the model, perf_analyzer or the photographs are missing.
    """
    images = read_photographs(config.images, IMAGES).images
    headers = {} if config.api_key is None else {"Authorization": f"Bearer {config.api_key}"}
    with addresses(config) as (base_url, triton_url), Progress(console=console, transient=True) as progress:
        url = f"{base_url}{CLASSIFY}?model={config.model}"
        requests = requests_of(url, images, as_form=not config.raw, headers=headers)
        triton = TritonModel(triton_url, config.model)
        window = partial(measure_window, url=url, triton=triton, seconds=config.seconds)
        closed: dict[int, list[Measured]] = {concurrency: [] for concurrency in config.concurrency}
        engine: dict[int, list[float]] = {concurrency: [] for concurrency in config.concurrency}
        opened: dict[float, list[Measured]] = {share: [] for share in config.load}
        rates: dict[float, float] = {}
        task = progress.add_task("measuring", total=config.rounds * (len(closed) + len(opened)))
        for round_ in range(config.rounds):
            for concurrency in closed:
                loop = partial(
                    closed_loop, url, requests, concurrency=concurrency, duration_s=config.seconds, warm_up_s=WARM_UP_S
                )
                closed[concurrency].append(window(loop))
                if config.engine:
                    engine[concurrency] += engine_rate(config, triton_url, concurrency, round_)
                progress.advance(task)
        best = max(statistics.median(each.load.rate_per_s for each in rounds) for rounds in closed.values())
        for round_ in range(config.rounds):
            for share in opened:
                rates[share] = share * best
                loop = partial(
                    open_loop,
                    url,
                    requests,
                    rate_per_s=rates[share],
                    duration_s=config.seconds,
                    warm_up_s=WARM_UP_S,
                    seed=round_,
                )
                opened[share].append(window(loop))
                progress.advance(task)

        precision = triton.description()[0].precision

    def result(rounds: Sequence[Measured], alone: Sequence[float] = (), **conditions: Condition) -> Result:
        figures, failure = figures_of(rounds)
        if figures and alone:
            figures["engine_images_per_s"] = Figure.of(alone, "images/s")
            figures["engine_share"] = Figure(
                value=figures["images_per_s"].value / figures["engine_images_per_s"].value, unit="share"
            )
        return Result(
            kind="http",
            model=config.model,
            precision=precision,
            conditions={
                **conditions,
                "images": config.images.name,
                "body": "image" if config.raw else "form",
                "seconds": config.seconds,
            },
            figures=figures,
            failure=failure,
        )

    return [
        *(
            result(rounds, engine[concurrency], loop="closed", concurrency=concurrency)
            for concurrency, rounds in closed.items()
        ),
        *(
            result(rounds, loop="open", load=share, offered_per_s=round(rates[share], 2))
            for share, rounds in opened.items()
        ),
    ]


def measure_window(
    loop: Callable[[], Coroutine[Any, Any, Load]], *, url: str, triton: TritonModel, seconds: float
) -> Measured:
    """Run a load while watching the server. Its processor time is that of the measured window."""
    processes = ServerProcesses.listening_at(url)

    def look() -> tuple[Use, Statistics]:
        return processes.use(), triton.statistics()

    load, (before, counted), (after, count) = watched(loop(), look, warm_up_s=WARM_UP_S, seconds=seconds)
    used = {name: cpu_s - before.cpu_s.get(name, 0) for name, cpu_s in after.cpu_s.items()}
    return Measured(load=load, used=used, memory_mib=after.memory_mib, triton=count - counted)


def figures_of(rounds: Sequence[Measured]) -> tuple[dict[str, Figure], str | None]:
    """The figures of one load over its rounds; when a round had no answer, why."""
    values: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    try:
        for each in rounds:
            for name, unit, value in window_figures(each):
                values[name, unit].append(value)
    except BenchmarkError as error:
        return {}, str(error)
    return {name: Figure.of(found, unit) for (name, unit), found in values.items()}, None


def window_figures(window: Measured) -> list[tuple[str, str, float]]:
    """Name, unit and value of each figure of one window."""
    load = window.load
    answered = [answer for answer in load.answers if answer.is_ok]
    figures = [("images_per_s", "images/s", load.rate_per_s)]
    figures += [(f"p{percentile}_ms", "ms", load.latency_ms(percentile)) for percentile in (50, 95, 99)]
    figures.append(("p99_over_p50", "ratio", load.latency_ms(99) / load.latency_ms(50)))
    figures += [
        ("refused_share", "share", 1 - len(answered) / len(load.answers)),
        ("client_cores", "cores", load.client_cpu_s / load.duration_s),
        ("server_cpu_ms_per_image", "ms", 1000 * sum(window.used.values()) / len(answered)),
        ("memory_mib", "MiB", window.memory_mib),
        ("mean_batch", "images", window.triton.mean_batch),
    ]
    figures += [
        (f"cpu_{program}_ms_per_image", "ms", 1000 * cpu_s / len(answered)) for program, cpu_s in window.used.items()
    ]
    stages = [stages_ms(answer.headers.get("server-timing", "")) for answer in answered]
    for stage in sorted({name for each in stages for name in each}):
        figures.append((f"stage_{stage}_ms", "ms", statistics.fmean(each.get(stage, 0) for each in stages)))
    figures += [(f"triton_{stage}_ms", "ms", window.triton.mean_ms(stage)) for stage in DURATIONS]
    return figures


def stages_ms(server_timing: str) -> dict[str, float]:
    """Milliseconds by stage of a header Server-Timing (W3C)."""
    stages = {}
    for entry in server_timing.split(","):
        name, _, duration = entry.strip().partition(";dur=")
        if duration:
            stages[name] = float(duration)
    return stages


def engine_rate(config: HttpConfig, triton_url: str, concurrency: int, round_: int) -> list[float]:
    """Images a second of Triton alone with as many requests of one image in flight; empty when it was not stable."""
    cell = measure(
        config.perf_analyzer,
        url=triton_url,
        model=config.model,
        batch_size=1,
        concurrency=concurrency,
        requests=max(50, 8 * concurrency),
        csv_file=config.results / "perf_analyzer" / f"{config.model}_c{concurrency}_r{round_}.csv",
    )
    return [] if cell is None else [cell.images_per_s]
