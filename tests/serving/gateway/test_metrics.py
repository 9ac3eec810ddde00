"""What operators see: metrics and the log line of each request."""

import contextlib
import re
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deit.ports import free_ports
from serving.gateway.metrics import CONFIDENCES
from tests.conftest import encoded, photograph
from tests.serving.conftest import eventually, running
from tests.serving.raw_http import connection, exchange, read_all, status

JPEG = encoded(photograph(96, 64))


def samples(client):
    """(name, labels) -> value"""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def grown(client, ask):
    """What grew by `ask`, and by how much, without the metrics of /metrics itself."""
    before = samples(client)
    ask()
    after = samples(client)
    changes = {key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key, 0)}
    return {key: change for key, change in changes.items() if ("route", "/metrics") not in key[1]}


def counters(changes):
    return {key: change for key, change in changes.items() if key[0].endswith("_total") or key[0].endswith("_count")}


def labels(**named):
    return tuple(sorted(named.items()))


def test_a_classified_image_is_counted_once_with_its_stages(client):
    best = client.post("/classify", content=JPEG).json()["predictions"][0]
    changes = counters(grown(client, lambda: client.post("/classify", content=JPEG)))
    model = {"model": "tiny", "version": "1"}
    assert changes == {
        ("deit_requests_total", labels(route="/classify", status="200")): 1,
        ("deit_request_seconds_count", labels(route="/classify")): 1,
        ("deit_images_total", labels(**model)): 1,
        ("deit_predictions_total", labels(label=best["label"], **model)): 1,
        ("deit_confidence_count", labels(**model)): 1,
        ("deit_request_images_count", ()): 1,
        ("deit_model_request_images_count", labels(model="tiny")): 1,
        **{
            ("deit_stage_seconds_count", labels(stage=stage, **model)): 1
            for stage in ("wait", "decode", "preprocess", "model")
        },
    }


def test_confidence_is_counted_in_buckets_and_summed(client):
    best = client.post("/classify", content=JPEG).json()["predictions"][0]["probability"]
    changes = grown(client, lambda: client.post("/classify", content=JPEG))
    assert changes[("deit_confidence_sum", labels(model="tiny", version="1"))] == pytest.approx(best)
    buckets = {dict(key[1])["le"] for key in changes if key[0] == "deit_confidence_bucket"}
    assert buckets == {str(bound) for bound in CONFIDENCES if best <= bound} | {"+Inf"}


def test_refusals_are_counted_by_problem_also_of_one_image_among_several(client):
    files = [("image", JPEG), ("image", b"no image"), ("image", JPEG[:300])]
    changes = counters(grown(client, lambda: client.post("/classify", files=files)))
    assert changes[("deit_problems_total", labels(problem="unsupported-type"))] == 1
    assert changes[("deit_problems_total", labels(problem="undecodable-image"))] == 1
    assert changes[("deit_images_total", labels(model="tiny", version="1"))] == 1
    changes = counters(grown(client, lambda: client.post("/classify", content=b"x")))
    assert changes[("deit_requests_total", labels(route="/classify", status="415"))] == 1
    assert changes[("deit_problems_total", labels(problem="unsupported-type"))] == 1


def test_what_a_caller_writes_is_no_label(client):
    client.get("/a-path-of-mine")
    client.post("/classify?model=a-model-of-mine", content=JPEG)
    client.get("/models/a-model-of-mine")
    client.request("BREW", "/a-path-of-mine")
    assert "mine" not in client.get("/metrics").text


def test_nothing_stays_in_flight(client):
    client.post("/classify", content=JPEG)

    def nothing_does():  # but the request that asks; another test's client may have left its own behind just now
        found = samples(client)
        return (found["deit_requests_in_flight", ()], found["deit_images_in_flight", ()]) == (1, 0)

    eventually(nothing_does)
    assert samples(client)["deit_image_limit", ()] >= 4


def test_each_request_has_a_line_with_its_id_and_its_stages_and_no_name_of_a_file(client, server):
    files = {"image": ("secret-name.jpg", JPEG)}
    client.post("/classify", files=files, headers={"X-Request-ID": "find-me-1"})
    eventually(lambda: "find-me-1" in server.output)
    line = next(line for line in server.lines if "find-me-1" in line)
    assert "POST /classify 200" in line
    for value in ("model=tiny", "version=1", "images=1", r"decode_ms=\d", r"model_ms=\d", r"receive_ms=\d", r" ms=\d"):
        assert re.search(value, line), value
    assert "secret-name" not in server.output


def test_health_has_no_line_and_a_file_of_the_page_has_one(client, server):
    client.get("/healthz", headers={"X-Request-ID": "find-me-2"})
    client.get("/static/app.js", headers={"X-Request-ID": "find-me-3"})
    eventually(lambda: "find-me-3" in server.output)
    assert "find-me-2" not in server.output
    assert "GET /static/ 200" in next(line for line in server.lines if "find-me-3" in line)


KEY = "a-key-of-the-first-user-0123456789"


@pytest.fixture(scope="module")
def apart(model_repository):
    """A server that asks for a key, and the address of its metrics."""
    (port,) = free_ports(1)
    options = ("--model-repository", model_repository, f"--metrics-port={port}")
    with running(*options, environment={"DEIT_API_KEYS": KEY}) as server:
        yield server.wait_until_ready(), f"http://127.0.0.1:{port}"


def test_metrics_can_have_a_port_of_their_own_that_needs_no_key(apart):
    server, url = apart
    assert "deit_requests_in_flight" in httpx.get(f"{url}/metrics", timeout=60).text
    assert server.get("/metrics", headers={"X-API-Key": KEY}).status_code == 404
    for path in ("/", "/healthz", "/models", "/docs"):
        assert httpx.get(url + path, timeout=60).status_code == 404
    assert httpx.post(f"{url}/classify", content=JPEG, timeout=60).status_code == 404


def test_the_port_of_the_metrics_has_the_limits_of_the_other(apart):
    server, url = apart

    def threads():
        return len(list(Path(f"/proc/{server.process.pid}/task").iterdir()))

    httpx.get(f"{url}/metrics", timeout=60)
    before = threads()
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connection(url)) for _ in range(100)]
        assert "deit_requests_in_flight" in httpx.get(f"{url}/metrics", timeout=60).text
        assert threads() - before < 10
        assert all(read_all(each) == b"" for each in silent), "each is closed after a while"
    assert status(exchange(url, b"GET /metrics HTTP/1.1\r\nX: " + b"a" * 10**6)) == 431
