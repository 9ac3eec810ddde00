"""More requests than DeiT-Ti can answer, due at their own times: the served rate holds, and those let in are soon done.

Needs a machine with nothing else to do; the client shares it with the server.
"""

import asyncio
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from benchmark.load import Load, closed_loop, open_loop, requests_of
from deit.repository.models import model_names
from export.config import ExportConfig
from export.pipeline import export_models
from tests.end_to_end.conftest import serving
from training.images import ParquetImages

logger = logging.getLogger(__name__)

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

WARM_UP_S, WINDOW_S = 10, 30

# Enough for the batches of both instances; more may be refused at the door, and who is refused leaves a gap.
SATURATING_CONCURRENCY = 12


@pytest.fixture(scope="module")
def repository(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("models")
    export_models(
        ExportConfig(
            checkpoint=str(shared_data / "imagenet" / "deit_tiny_patch16_224.pth"),
            architecture="deit_tiny_patch16_224",
            labels="imagenet-1k",
            crop_pct=0.875,
            images=shared_data / "imagenet" / "sample500.parquet",
            repository=repository,
        )
    )
    return repository


@pytest.fixture(scope="module", params=[0, 50])
def url(repository: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """With a shadow on this percentage of the requests: the same model, so that its answers are known."""
    (name,) = model_names(repository)
    with serving(repository, f"--shadow={name}={name}/1:{request.param}", max_wait_s=0.5) as url:
        yield f"{url}/classify"
        page = httpx.get(f"{url}/metrics").text
    compared = re.findall(r'^deit_shadow_images_total{.*outcome="(\w+)"', page, re.MULTILINE)
    assert set(compared) == ({"agrees", "dropped"} if request.param else set())


@pytest.fixture(scope="module")
def requests(url: str, shared_data: Path) -> list[bytes]:
    photographs = ParquetImages([shared_data / "imagenet" / "sample500.parquet"])
    return requests_of(url, [photographs.encoded(index) for index in range(200)])


@pytest.fixture(scope="module")
def capacity(url: str, requests: list[bytes]) -> float:
    return measure_capacity(url, requests)


def measure_capacity(url: str, requests: list[bytes]) -> float:
    """Answers a second when there is always something to do; some of the requests may be refused meanwhile."""
    load = asyncio.run(
        closed_loop(url, requests, concurrency=SATURATING_CONCURRENCY, duration_s=WINDOW_S, warm_up_s=WARM_UP_S)
    )
    assert load.rate_per_s > 1
    return load.rate_per_s


@pytest.fixture(scope="module")
def at_nine_tenths(url: str, requests: list[bytes], capacity: float) -> Load:
    return offered(url, requests, 0.9 * capacity)


def offered(url: str, requests: list[bytes], rate_per_s: float) -> Load:
    return asyncio.run(open_loop(url, requests, rate_per_s=rate_per_s, duration_s=WINDOW_S, warm_up_s=WARM_UP_S))


def described(load: Load) -> str:
    return f"{load.rate_per_s:.1f}/s, p99 {load.latency_ms(99):.0f} ms, {dict(load.statuses)}"


@pytest.mark.parametrize("times", [1.5, 3, 10])
def test_the_served_rate_holds_and_refusals_say_when_to_come_again(
    url: str,
    requests: list[bytes],
    capacity: float,
    at_nine_tenths: Load,
    times: float,
) -> None:
    load = offered(url, requests, times * capacity)
    findings = f"capacity {capacity:.1f}/s; at 0.9: {described(at_nine_tenths)}; at {times}: {described(load)}"
    logger.info(findings)  # with --log-cli-level=INFO
    assert set(load.statuses) <= {200, 429}, findings
    assert load.statuses[429] > 0, findings
    refusals = [answer for answer in load.answers if answer.status == 429]
    assert all(1 <= int(answer.headers.get("retry-after", 0)) <= 60 for answer in refusals), findings
    assert load.latency_ms(99) <= max(2 * at_nine_tenths.latency_ms(99), 1000), findings
    # At ten times the capacity refusing costs as much as answering does, on cores that client and server share.
    if times < 10 and load.rate_per_s < 0.9 * capacity:  # or the machine is slower than minutes ago
        now = measure_capacity(url, requests)
        assert load.rate_per_s >= 0.9 * now, f"{findings}; capacity now {now:.1f}/s"


def test_afterwards_everything_is_answered(url: str, requests: list[bytes], capacity: float) -> None:
    load = offered(url, requests, 0.5 * capacity)
    assert set(load.statuses) == {200}
