"""The step `triton`: the rate in Triton as a share of the engine's, over gRPC, with right answers."""

from collections.abc import Iterator

import numpy as np

from benchmark.gpu_check.config import GpuCheckConfig
from benchmark.gpu_check.export import model_of, published
from benchmark.gpu_check.finding import Finding, earlier, judged
from benchmark.gpu_check.grpc_load import closed_loop
from benchmark.results import Condition, Figure, Result
from benchmark.server import our_server
from benchmark.triton_statistics import TritonModel

AIM = 0.9
SECONDS = 3.0
# Images of a request, and requests in flight over all clients.
LOADS = ((1, 128), (32, 16), (128, 8))


def check(config: GpuCheckConfig) -> Iterator[Finding]:
    """Every exported precision, from several client processes."""
    models = published(config)
    best = engine_rates(config)
    with our_server(config.repository, default_model=model_of(next(iter(models)))) as server:
        for precision in models:
            name = model_of(precision)
            side = TritonModel(server.triton_url, name).description()[1].image_size
            rates = []
            for images, in_flight in ((2, 2),) if config.rehearse else LOADS:
                finding, rate = under_load(config, server.triton_url, name, precision, side, images, in_flight)
                rates.append(rate)
                yield finding
            if precision in best and not config.rehearse:
                share = max(rates) / best[precision]
                yield judged(
                    f"{precision}: share of the engine's best rate",
                    share >= AIM,
                    f"{max(rates):.0f} of {best[precision]:.0f} images/s, {share:.0%}; aim {AIM:.0%}",
                )


def under_load(
    config: GpuCheckConfig, url: str, name: str, precision: str, side: int, images: int, in_flight: int
) -> tuple[Finding, float]:
    """Random pixels; all answers for an image must be equal, within what its batch may change."""
    batch = np.random.default_rng(0).integers(0, 256, (images, side, side, 3), np.uint8)
    triton = TritonModel(url, name)
    before = triton.statistics()
    load = closed_loop(
        url,
        name,
        batch,
        clients=1 if config.rehearse else min(8, in_flight),
        in_flight=in_flight,
        seconds=0.5 if config.rehearse else SECONDS,
    )
    counted = triton.statistics() - before
    figures = {
        "images_per_s": Figure(value=load.images_per_s, unit="images/s"),
        **{f"p{part}_ms": Figure(value=load.latency_ms(part), unit="ms") for part in (50, 95, 99)},
        "mean_batch": Figure(value=counted.mean_batch, unit="images"),
    }
    conditions: dict[str, Condition] = {
        "batch_size": images,
        "concurrency": in_flight,
        "client": "grpc_load",
        "device": "cpu" if config.rehearse else "cuda",
    }
    result = Result("throughput", name, precision, conditions, figures)
    text = (
        f"{load.images_per_s:.0f} images/s, p50 {load.latency_ms(50):.1f} ms, p99 {load.latency_ms(99):.1f} ms, "
        f"batches of {counted.mean_batch:.0f}; stages in ms: "
        + ", ".join(f"{stage} {counted.mean_ms(stage):.1f}" for stage in counted.seconds)
    )
    label = f"{precision}, {in_flight} requests of {images} in flight"
    if load.failures:
        return judged(label, False, f"{len(load.failures)} failures, first: {load.failures[0]}", result), 0.0
    return Finding(name=label, verdict="measured", text=text, results=(result,)), load.images_per_s


def engine_rates(config: GpuCheckConfig) -> dict[str, float]:
    """The best rate of the step `engines`, by precision."""
    rates: dict[str, float] = {}
    for record in earlier(config):
        if record.kind == "engine" and record.conditions.get("instances") == 1:
            rates[record.precision] = max(rates.get(record.precision, 0.0), record.value("images_per_s") or 0.0)
    return rates
