"""More requests than can be answered soon: refusals at the door, right answers inside."""

import contextlib
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.conftest import encoded, photograph


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


def test_a_refusal_does_not_wait_for_the_body(deit_serve, model_repository):
    server = deit_serve("--model-repository", model_repository, "--max-in-flight-bytes=1000").wait_until_ready()
    header = b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Type: image/jpeg\r\nContent-Length: 900\r\n\r\n"
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(server.url)) for _ in range(2)]
        connections[0].sendall(header + b"\xff\xd8")
        refusal = b""
        while b"overloaded" not in refusal:
            # the first may not have been seen yet; then the second waits for its body too, and is asked anew
            with connect(server.url) as late:
                late.settimeout(2)
                late.sendall(header)
                with contextlib.suppress(TimeoutError):
                    refusal = late.recv(4096)
        assert refusal.startswith(b"HTTP/1.1 429 ")
        assert b"retry-after: 1\r\n" in refusal.lower()


def connect(url):
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)
