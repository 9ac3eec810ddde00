"""The step `http`: the whole path, JPEG files in and JSON out, with 1, 32 and 128 requests in flight."""

from collections.abc import Iterator, Sequence

from benchmark.gpu_check.config import GpuCheckConfig
from benchmark.gpu_check.export import model_of, published
from benchmark.gpu_check.finding import Finding, NotPossible, judged
from benchmark.images import read_photographs
from benchmark.load import closed_loop, requests_of
from benchmark.processes import ServerProcesses, watched
from benchmark.results import Figure, Result
from benchmark.server import CLASSIFY, Server, our_server

SECONDS = 4.0
WARM_UP_S = 1.0
PHOTOGRAPHS = 128


def check(config: GpuCheckConfig) -> Iterator[Finding]:
    """The fastest precision that was published, with the gateway's defaults."""
    precision, photographs = fastest(config, PHOTOGRAPHS)
    with our_server(config.repository, default_model=model_of(precision)) as server:
        yield from measured(server, photographs, precision, config)


def fastest(config: GpuCheckConfig, most: int) -> tuple[str, Sequence[bytes]]:
    """The fastest precision that was published, and up to `most` photographs. Raises NotPossible without either."""
    models = published(config)
    if config.images is None:
        raise NotPossible("photographs are sent to the gateway: give --images")
    photographs = read_photographs(config.images, most).images
    return next(name for name in ("fp16", "bf16", "fp32", "int8") if name in models), photographs


def measured(
    server: Server, photographs: Sequence[bytes], precision: str, config: GpuCheckConfig, **conditions: str
) -> Iterator[Finding]:
    """With a few and with many requests in flight.

    Args:
        conditions: what is not as by default, for the results.
    """
    url = f"{server.url}{CLASSIFY}"
    requests = requests_of(url, photographs, as_form=False)
    warm_up_s, seconds = (0.2, 1.0) if config.rehearse else (WARM_UP_S, SECONDS)
    processes = ServerProcesses.of(server.pid)
    for in_flight in (2,) if config.rehearse else (1, 32, 128):
        loop = closed_loop(url, requests, concurrency=in_flight, duration_s=seconds, warm_up_s=warm_up_s)
        load, before, after = watched(loop, processes.use, warm_up_s=warm_up_s, seconds=seconds)
        name = f"{precision}, {in_flight} in flight"
        if set(load.statuses) != {200}:
            yield judged(name, False, f"answers by status: {dict(load.statuses)}")
            continue
        used = {program: spent - before.cpu_s.get(program, 0.0) for program, spent in after.cpu_s.items()}
        percentiles = {part: load.latency_ms(part) for part in (50, 95, 99)}
        figures = {
            "images_per_s": Figure(value=load.rate_per_s, unit="images/s"),
            **{f"p{part}_ms": Figure(value=value, unit="ms") for part, value in percentiles.items()},
            "client_cores": Figure(value=load.client_cpu_s / load.duration_s, unit="cores"),
            "memory_mib": Figure(value=after.memory_mib, unit="MiB"),
        }
        result = Result(
            "http",
            model_of(precision),
            precision,
            {
                "loop": "closed",
                "concurrency": in_flight,
                "body": "image",
                "images": config.images.name if config.images else "",
                "seconds": SECONDS,
                "device": "cpu" if config.rehearse else "cuda",
                **conditions,
            },
            figures,
        )
        yield Finding(
            name=name,
            verdict="measured",
            text=f"{load.rate_per_s:.0f} images/s, p50 {percentiles[50]:.1f} ms, p99 {percentiles[99]:.1f} ms, "
            f"seconds of processor time: " + ", ".join(f"{key} {value:.1f}" for key, value in used.items()),
            results=(result,),
        )
