"""A server whose decoders are gone or stand still: it says so, and has them again without a hand."""

import os
import resource
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.conftest import encoded, photograph
from tests.serving.conftest import eventually

PICTURE = encoded(photograph(96, 64))


def test_decoders_that_cannot_be_started_for_a_while_make_it_unready_and_come_back(deit_serve, model_repository):
    """A new connection needs a file descriptor too, so one client asks all."""
    server = deit_serve(
        "--model-repository", model_repository, "--decoders=2", "--request-timeout-s=60"
    ).wait_until_ready()
    pid = server.process.pid
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    with httpx.Client(base_url=server.url, timeout=60) as client:

        def classify():
            return client.post("/classify", content=PICTURE)

        assert classify().status_code == 200
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (8, limits[1]))
        for decoder in server.decoders():
            os.kill(decoder, signal.SIGKILL)
        eventually(lambda: client.get("/readyz").status_code == 503)
        eventually(lambda: "Too many open files" in client.get("/readyz").json()["detail"])
        started_s = time.monotonic()
        refusal = classify()
        assert (refusal.status_code, refusal.json()["type"]) == (503, "/problems/not-ready")
        assert time.monotonic() - started_s < 30, "it waits for nothing"
        assert client.get("/healthz").status_code == 200
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        eventually(lambda: client.get("/readyz").status_code == 200)
        assert classify().status_code == 200
    eventually(lambda: len(server.decoders()) == 2)  # it is ready with the first


def test_stopped_decoders_are_replaced_long_before_a_request_would_be_given_up(deit_serve, model_repository):
    server = deit_serve(
        *("--model-repository", model_repository, "--decoders=2"), *("--request-timeout-s=60", "--max-wait-s=60")
    ).wait_until_ready()
    stopped = server.decoders()
    for decoder in stopped:
        os.kill(decoder, signal.SIGSTOP)
    with httpx.Client(base_url=server.url, timeout=60) as client, ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda _: client.post("/classify", content=PICTURE), range(48)))
    assert sorted(answer.status_code for answer in answers) == [200] * 46 + [503] * 2
    eventually(lambda: server.output.count("is stopped, by a signal or a debugger; killing it") == 2)
    eventually(lambda: len(server.decoders()) == 2)
    assert not set(stopped) & set(server.decoders())
