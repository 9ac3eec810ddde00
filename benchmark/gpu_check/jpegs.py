"""The step `jpegs`: with JPEGs decoded in Triton, on the GPU, the same answers as with exact pixels, and their rate."""

import importlib.util
from collections.abc import Iterator, Sequence

import httpx

from benchmark.gpu_check.config import GpuCheckConfig
from benchmark.gpu_check.export import model_of
from benchmark.gpu_check.finding import Finding, NotPossible, judged
from benchmark.gpu_check.http import fastest, measured
from benchmark.server import CLASSIFY, our_server

PHOTOGRAPHS = 500

LEAST_AGREEMENT = 0.995
"""Share of the photographs whose most probable class stays."""


def check(config: GpuCheckConfig) -> Iterator[Finding]:
    """The fastest precision that was published, with the gateway's defaults otherwise."""
    precision, photographs = fastest(config, PHOTOGRAPHS)
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.nvimgcodec") is None:
        raise NotPossible("nvImageCodec is not installed; it comes with the extra gpu")
    device, model = "cpu" if config.rehearse else "gpu", model_of(precision)
    with our_server(config.repository, default_model=model, exact=True) as server:
        exact = best_answers(server.url, photographs)
    with our_server(config.repository, default_model=model, triton_decode=device) as server:
        found = best_answers(server.url, photographs)
        yield from measured(server, photographs, precision, config, decoded_in="Triton")
        counts = decoded_counts(server.url)
    same = sum(ours[0] == theirs[0] for ours, theirs in zip(found, exact, strict=True)) / len(exact)
    largest = max(abs(ours[1] - theirs[1]) for ours, theirs in zip(found, exact, strict=True) if ours[0] == theirs[0])
    yield judged(
        "answers as with exact pixels",
        same >= LEAST_AGREEMENT and counts["decoded"] > counts["left"],
        f"{same:.1%} of the first answers are the same ({LEAST_AGREEMENT:.1%} are needed), and their probabilities "
        f"within {largest:.1e}; Triton decoded {counts['decoded']:.0f} JPEGs and left {counts['left']:.0f}",
    )


def best_answers(url: str, photographs: Sequence[bytes]) -> list[tuple[int, float]]:
    """The most probable class of each photograph, and its probability."""
    with httpx.Client(base_url=url, timeout=60) as client:
        answers = [client.post(CLASSIFY, content=each).raise_for_status().json() for each in photographs]
    return [(each["predictions"][0]["index"], each["predictions"][0]["probability"]) for each in answers]


def decoded_counts(url: str) -> dict[str, float]:
    """JPEGs that Triton was asked to decode, by what became of them."""
    counts = {"decoded": 0.0, "left": 0.0}
    for line in httpx.get(f"{url}/metrics", timeout=60).text.splitlines():
        if line.startswith("deit_triton_jpegs_total{"):
            counts[line.split('"')[1]] = float(line.rpartition(" ")[2])
    return counts
