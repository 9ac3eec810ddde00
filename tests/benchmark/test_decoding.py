"""The measurement of decoding gives figures; which ones, a machine with nothing else to do says."""

import asyncio

import pytest

from benchmark.decoding import in_processes, in_threads
from tests.conftest import encoded, photograph

IMAGES = [encoded(photograph(96, 64, seed)) for seed in range(4)]


@pytest.mark.parametrize(
    "run",
    [
        lambda: in_threads(IMAGES, threads=2, concurrency=2, duration_s=0.3),
        lambda: in_processes(IMAGES, processes=2, mode="exact", concurrency=2, duration_s=0.3),
        lambda: in_processes(IMAGES, processes=1, mode="fast", concurrency=2, duration_s=0.3),
    ],
    ids=["threads", "processes", "fast"],
)
def test_a_run_has_a_rate_and_latencies(run):
    result = asyncio.run(run())
    assert result.images_per_s > 0
    assert 0 < result.p50_ms <= result.p99_ms
    assert result.lag_p99_ms >= 0
