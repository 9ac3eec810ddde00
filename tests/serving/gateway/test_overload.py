"""More requests than can be answered soon: refusals at the door, right answers inside."""

import contextlib
import select
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.conftest import encoded, photograph
from tests.serving.conftest import eventually, running


def test_what_is_too_much_is_429_with_retry_after_and_the_rest_is_right(deit_serve, model_repository):
    server = deit_serve("--model-repository", model_repository, "--max-wait-s=0.0001").wait_until_ready()
    contents = [encoded(photograph(96, 64, seed)) for seed in range(24)]
    with httpx.Client(base_url=server.url, timeout=60) as client:

        def ask(content):
            return client.post("/classify", content=content)

        expected = [ask(content).json() for content in contents]
        with ThreadPoolExecutor(24) as threads:
            answers = list(threads.map(ask, contents * 10))
        refused = [answer for answer in answers if answer.status_code == 429]
        assert 0 < len(refused) < len(answers)
        for answer in refused:
            assert answer.json()["type"] == "/problems/overloaded"
            assert 1 <= int(answer.headers["retry-after"]) <= 60
        for answer, right in zip(answers, expected * 10, strict=True):
            if answer.status_code != 429:
                assert answer.status_code == 200
                assert answer.json()["predictions"][0]["index"] == right["predictions"][0]["index"]
        assert client.get("/healthz").status_code == 200
        assert ask(contents[0]).status_code == 200


@pytest.fixture(scope="module")
def short_of_memory(model_repository):
    """A server that holds 1.5 MB of bodies."""
    with running("--model-repository", model_repository, "--max-in-flight-bytes=1500000") as server:
        yield server.wait_until_ready()


HEADER = b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Type: image/jpeg\r\nContent-Length: 1000000\r\n\r\n"


def test_a_refusal_does_not_wait_for_the_body(short_of_memory):
    with connect(short_of_memory.url) as first:
        first.sendall(HEADER + b"\xff" * 900_000)
        refusal = b""
        while b"overloaded" not in refusal:
            # the first may not have been seen yet; then the second waits for its body too, and is asked anew
            with connect(short_of_memory.url) as late:
                late.settimeout(2)
                late.sendall(HEADER)
                with contextlib.suppress(TimeoutError):
                    refusal = late.recv(4096)
        assert refusal.startswith(b"HTTP/1.1 429 ")
        assert b"retry-after: 1\r\n" in refusal.lower()


def test_uploads_that_stand_still_keep_nobody_out(short_of_memory):
    """What they declare is not memory yet."""
    with contextlib.ExitStack() as stack:
        for _ in range(26):
            stack.enter_context(connect(short_of_memory.url)).sendall(HEADER + b"\xff\xd8")
        eventually(lambda: "deit_requests_in_flight 27.0" in short_of_memory.get("/metrics").text)
        answer = short_of_memory.post("/classify", content=encoded(photograph(96, 64)))
        assert answer.status_code == 200


def test_bodies_that_arrive_share_the_memory_that_there_is(short_of_memory):
    with connect(short_of_memory.url) as first, connect(short_of_memory.url) as second:
        for connection in (first, second):
            connection.sendall(HEADER)
        eventually(lambda: "deit_requests_in_flight 3.0" in short_of_memory.get("/metrics").text)
        for connection in (first, second):
            connection.sendall(b"\xff" * 800_000)
        (refused,), _, _ = select.select([first, second], [], [], 30)
        assert refused.recv(4096).startswith(b"HTTP/1.1 429 ")


@pytest.fixture(scope="module")
def twelve_megapixels():
    return encoded(photograph(500, 375).resize((4000, 3000)))


def test_large_images_keep_no_small_ones_out(deit_serve, model_repository, twelve_megapixels):
    """They wait for the one decoder that takes them, far longer than --max-wait-s; another has nothing else to do."""
    server = deit_serve(
        *("--model-repository", model_repository, "--decoders=2", "--decode=exact"),
        *("--max-wait-s=1", "--request-timeout-s=60"),
    ).wait_until_ready()
    is_over = threading.Event()
    statuses = []

    def crowd(_):
        with httpx.Client(base_url=server.url, timeout=100) as client:
            while not is_over.is_set():
                statuses.append(client.post("/classify", content=twelve_megapixels).status_code)
                is_over.wait(0.05)

    small = encoded(photograph(96, 64))
    # so many that the last ones wait longer than a second even where one takes 50 ms
    with ThreadPoolExecutor(32) as threads, httpx.Client(base_url=server.url, timeout=100) as client:
        done = threads.map(crowd, range(32))
        try:
            eventually(lambda: 429 in statuses, timeout_s=100)
            assert [client.post("/classify", content=small).status_code for _ in range(30)] == [200] * 30
        finally:
            is_over.set()
        list(done)
    assert set(statuses) <= {200, 429}


def connect(url):
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)
