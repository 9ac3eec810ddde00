"""Behind a balancer or an ingress: under a path, over IPv6, on connections that stay open."""

import socket
import time
from urllib.parse import urljoin, urlsplit

import httpx
import pytest

from tests.browser import chromium, find_chromium
from tests.conftest import encoded, photograph
from tests.serving.conftest import running
from tests.serving.raw_http import read_all, read_answer

PICTURE = encoded(photograph(96, 64))
KEEP_ALIVE_S = 3.0


@pytest.fixture(scope="module")
def ingress(model_repository):
    if not socket.has_dualstack_ipv6():
        pytest.skip("needs IPv6")
    options = ("--host=::", "--insecure", "--root-path=/vision", f"--keep-alive-s={KEEP_ALIVE_S}")
    with running("--model-repository", model_repository, *options) as process:
        yield process.wait_until_ready()


@pytest.fixture(scope="module")
def port(ingress):
    return urlsplit(ingress.url).port


@pytest.fixture(scope="module", params=["", "/vision"], ids=["removed by the proxy", "left by the proxy"])
def client(request, port):
    early = httpx.Limits(keepalive_expiry=KEEP_ALIVE_S / 2)  # a request must not meet the server's closing
    with httpx.Client(base_url=f"http://[::1]:{port}{request.param}", timeout=60, limits=early) as client:
        yield client


@pytest.mark.parametrize("host", ["[::1]", "127.0.0.1"])
def test_both_families_are_answered(port, host):
    assert httpx.get(f"http://{host}:{port}/readyz", timeout=60).status_code == 200


def test_the_root_path_is_known_whether_or_not_the_proxy_removes_it(client):
    assert client.post("/classify", content=PICTURE).status_code == 200
    assert client.post("/hf", content=PICTURE).status_code == 200
    assert client.get("/models/tiny").json()["name"] == "tiny"
    redirect = client.get("/models/tiny/")
    assert (redirect.status_code, redirect.headers["location"]) == (307, "../tiny")


def test_a_problem_resolves_where_callers_are(client, port):
    refused = client.post("/classify", content=b"no picture").json()
    assert refused["type"] == "/vision/problems/unsupported-type"
    assert httpx.get(urljoin(f"http://[::1]:{port}/vision/classify", refused["type"]), timeout=60).status_code == 200
    files = [("image", ("a.jpg", each)) for each in (PICTURE, b"no picture")]
    assert client.post("/classify", files=files).json()["results"][1]["problem"]["type"] == refused["type"]


def test_the_description_names_the_root_path(client):
    assert client.get("/openapi.json").json()["servers"] == [{"url": "/vision"}]


def test_the_page_has_a_slash_at_its_end(port):
    answer = httpx.get(f"http://[::1]:{port}/vision", timeout=60)
    assert (answer.status_code, urljoin("/vision", answer.headers["location"])) == (307, "/vision/")


@pytest.mark.parametrize("path", ["/visionary/healthz", "/vision/vision/healthz"])
def test_another_path_is_not_the_root_path(port, path):
    assert httpx.get(f"http://[::1]:{port}{path}", timeout=60).status_code == 404


def test_the_page_and_the_documentation_work_under_the_root_path(port):
    executable = find_chromium()
    if executable is None:
        pytest.skip("needs Chromium (Debian, Ubuntu: apt install chromium)")
    with chromium(executable) as browser:
        page = browser.new_page()
        failed = []
        page.on("response", lambda response: failed.append(response.url) if response.status >= 400 else None)
        page.goto(f"http://[::1]:{port}/vision")
        page.set_input_files("#files", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": PICTURE})
        page.locator("#top-label").wait_for(timeout=60_000)
        page.get_by_role("link", name="API", exact=True).click()
        page.locator(".opblock-summary-path").first.wait_for(timeout=60_000)
        assert page.url == f"http://[::1]:{port}/vision/docs"
        assert failed == []


def test_an_idle_connection_stays_open_as_long_as_it_is_told(port):
    with socket.create_connection(("::1", port), timeout=60) as connected:
        asked_s = time.monotonic()
        connected.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"alive" in read_answer(connected)
        assert read_all(connected) == b""
        assert KEEP_ALIVE_S <= time.monotonic() - asked_s < 20
