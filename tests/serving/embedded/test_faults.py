"""Triton dies, hangs, or loses the process that runs a model: errors soon, recovery without a hand."""

import os
import re
import signal
import stat
import threading
import time
from pathlib import Path

import httpx
import pytest

from tests.conftest import encoded, photograph
from tests.serving.conftest import commands, eventually, is_alive, shared_memory, write_model

CONTENT = encoded(photograph(96, 64))

# "At once" is a second on a machine with nothing else to do. Tests run next to trainings on few cores, where an answer
# may take many; what matters here is that nobody waits for the end of REQUEST_TIMEOUT_S.
REQUEST_TIMEOUT_S = 100
SOON_S = 50


def triton_of(server):
    return server.pid_of("tritonserver")


def stub_of(server):
    return server.pid_of("triton_python_backend")


class Callers:
    """Clients that ask without pause; `answers` has the status and the seconds of each."""

    def __init__(self, url, count=4):
        self._url = url
        self._stop = threading.Event()
        self.answers = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self):
        with httpx.Client(base_url=self._url, timeout=120) as client:
            while not self._stop.is_set():
                started = time.monotonic()
                answer = client.post("/classify", content=CONTENT)
                self.answers.append((answer.status_code, time.monotonic() - started))
                time.sleep(0.02)  # a polite client; refusals are answered faster than the processor is shared

    def statuses_since(self, index):
        return [status for status, _ in self.answers[index:]]


def modes(server):
    """Who may read the pictures that lie in shared memory."""
    return {stat.S_IMODE(region.stat().st_mode) for region in shared_memory(server)}


@pytest.mark.parametrize(
    ("victim", "by"),
    [(triton_of, signal.SIGKILL), (stub_of, signal.SIGKILL), (triton_of, signal.SIGSTOP)],
    ids=["triton is killed", "its backend is killed", "triton hangs"],
)
def test_requests_end_soon_with_503_and_triton_is_started_again(deit_serve, model_repository, victim, by):
    server = deit_serve(
        "--model-repository", model_repository, f"--request-timeout-s={REQUEST_TIMEOUT_S}"
    ).wait_until_ready()
    first = [pid for pid in server.children() if pid not in server.decoders()]
    assert modes(server) == {0o600}
    with Callers(server.url) as callers:
        eventually(lambda: callers.statuses_since(0).count(200) > 20, timeout_s=100)
        at = len(callers.answers)
        os.kill(victim(server), by)
        eventually(lambda: 503 in callers.statuses_since(at), timeout_s=60)
        assert server.get("/healthz").status_code == 200
        eventually(lambda: callers.statuses_since(-10).count(200) == 10, timeout_s=200)
        assert server.get("/readyz").status_code == 200
    assert set(callers.statuses_since(0)) == {200, 503}
    assert max(seconds for _, seconds in callers.answers) < SOON_S
    assert not any(map(is_alive, first))
    assert "restarting Triton in 0 s (1 of at most 5 in a row)" in server.output
    assert "Traceback" not in server.output
    assert len(shared_memory(server)) <= 2
    assert modes(server) == {0o600}


def test_one_stopped_instance_of_two_is_not_hidden_by_the_other(deit_serve, tmp_path):
    """The other answers whenever the model is asked how it is, and requests that went to the stopped one wait."""
    write_model(tmp_path / "twofold")
    config = tmp_path / "twofold" / "config.pbtxt"
    config.write_text(config.read_text().replace("KIND_AUTO count: 1", "KIND_AUTO count: 2"))
    server = deit_serve("--model-repository", tmp_path, "--request-timeout-s=60").wait_until_ready()
    children = server.children()
    stubs = [pid for pid, name in zip(children, commands(children), strict=True) if "_stub" in name]
    assert len(stubs) == 2
    os.kill(stubs[0], signal.SIGSTOP)
    with Callers(server.url) as callers:
        eventually(lambda: "restarting Triton" in server.output, timeout_s=60)
        eventually(lambda: callers.statuses_since(-10).count(200) == 10, timeout_s=100)
        eventually(lambda: not is_alive(stubs[0]))  # it is killed a moment after that line
    assert "is stopped; restarting Triton" in server.output


@pytest.mark.soak
@pytest.mark.parametrize(
    ("victim", "by"),
    [(triton_of, signal.SIGKILL), (stub_of, signal.SIGKILL), (triton_of, signal.SIGSTOP), (stub_of, signal.SIGSTOP)],
    ids=["triton is killed", "its backend is killed", "triton hangs", "its backend hangs"],
)
def test_errors_come_within_a_second_and_recovery_by_itself_every_time(deit_serve, model_repository, victim, by):
    server = deit_serve("--model-repository", model_repository, "--triton-restarts=100").wait_until_ready()
    with Callers(server.url) as callers:
        for _ in range(5):
            eventually(lambda: callers.statuses_since(-20).count(200) == 20, timeout_s=100)
            at = len(callers.answers)
            os.kill(victim(server), by)
            eventually(lambda: httpx.get(f"{server.url}/readyz", timeout=1).status_code == 503, timeout_s=1)
            eventually(lambda at=at: 503 in callers.statuses_since(at), timeout_s=1)
    assert set(callers.statuses_since(0)) == {200, 503}
    assert max(seconds for _, seconds in callers.answers) < 1


def test_without_restarts_a_pause_is_survived_and_a_death_ends_it_with_status_1(deit_serve, model_repository):
    server = deit_serve("--model-repository", model_repository, "--triton-restarts=0").wait_until_ready()
    triton, children = triton_of(server), server.children()
    os.kill(triton, signal.SIGSTOP)
    eventually(lambda: server.get("/readyz").status_code == 503)
    refusal = server.post("/classify", content=CONTENT)
    assert (refusal.status_code, refusal.json()["type"]) == (503, "/problems/not-ready")
    assert refusal.headers["retry-after"]
    os.kill(triton, signal.SIGCONT)
    eventually(lambda: server.get("/readyz").status_code == 200)
    assert server.post("/classify", content=CONTENT).status_code == 200
    assert triton_of(server) == triton
    os.kill(triton, signal.SIGKILL)
    assert server.wait() == 1
    assert "deit: Triton ended with status -9" in server.output
    assert not any(map(is_alive, children))


def test_too_many_restarts_end_it_with_status_1_and_the_reason(deit_serve, tmp_path):
    write_model(tmp_path / "spoilt")
    server = deit_serve("--model-repository", tmp_path, "--triton-restarts=2").wait_until_ready()
    (tmp_path / "spoilt" / "1" / "model.onnx").write_bytes(b"not a graph")
    os.kill(triton_of(server), signal.SIGKILL)
    assert server.wait() == 1
    (line,) = [line for line in server.lines if line.startswith("deit: ")]
    assert "model.onnx does not load" in line
    assert "after 2 restarts in a row" in line
    assert "Traceback" not in server.output
    assert not server.children()


def test_a_model_that_does_not_load_leaves_the_others_alone(deit_serve, tmp_path):
    """At the start, and when Triton is started again."""
    for name in ("sound", "spoilt", "torn"):
        write_model(tmp_path / name)
    (tmp_path / "torn" / "1" / "model.onnx").write_bytes(b"not a graph")
    server = deit_serve("--model-repository", tmp_path, "--triton-restarts=1").wait_until_ready()
    assert "the model torn is not served, the others are" in server.output
    picture = encoded(photograph(64, 48))

    def status(model):
        return server.post(f"/classify?model={model}", content=picture).status_code

    assert [status(name) for name in ("sound", "spoilt", "torn")] == [200, 200, 503]
    assert re.search(r'^deit_models_broken{triton="127.0.0.1:\d+"} 1.0$', server.get("/metrics").text, re.M)
    (tmp_path / "spoilt" / "1" / "model.onnx").write_bytes(b"not a graph")
    os.kill(triton_of(server), signal.SIGKILL)
    eventually(lambda: status("sound") == 200, 60)
    assert status("spoilt") == 503


def test_a_dead_triton_elsewhere_is_found_and_found_again(deit_serve, model_repository):
    """The gateway does not own it and starts nothing; another one at the same place is enough."""
    repository = ("--model-repository", model_repository)
    owner = deit_serve(*repository, "--triton-restarts=0").wait_until_ready()
    port = next(a.partition("=")[2] for a in arguments(triton_of(owner)) if a.startswith("--grpc-port"))
    server = deit_serve(f"--triton-url=127.0.0.1:{port}").wait_until_ready()
    assert "tritonserver" not in commands(server.children())
    os.kill(triton_of(owner), signal.SIGKILL)
    eventually(lambda: server.get("/readyz").status_code == 503, timeout_s=60)
    assert owner.wait() == 1
    deit_serve(*repository, f"--triton-grpc-port={port}").wait_until_ready()
    eventually(lambda: server.get("/readyz").status_code == 200, timeout_s=60)
    assert server.post("/classify", content=CONTENT).json()["model"] == "tiny"


def arguments(pid):
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
