"""`deit triton`, the embedded Triton alone, as a process."""

import contextlib
import os
import re
import signal

import httpx
import pytest
from tritonclient.grpc import InferenceServerClient

from deit.ports import free_ports
from tests.serving.conftest import commands, deit_triton, descendants, eventually, is_alive
from tests.short_commands import deit


def answers(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url, timeout=60).status_code == 200
    return False


def wait_until_open(process, url: str) -> None:
    def is_open() -> bool:
        assert process.poll() is None, process.stderr.read()
        return answers(url)

    eventually(is_open, 100)


def inferences(port: int) -> float:
    page = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=60).text
    return float(re.search(r"^nv_inference_request_success\{.*\} (\S+)", page, re.MULTILINE)[1])


def test_it_serves_others_and_ends_when_a_model_is_lost(model_repository):
    """A container's restart policy starts it anew; Triton itself would say "ready" for ever."""
    grpc, metrics, http = free_ports(3)
    ports = [f"--triton-grpc-port={grpc}", f"--triton-metrics-port={metrics}", f"--triton-http-port={http}"]
    with deit_triton("--model-repository", model_repository, "--host=0.0.0.0", "--insecure", *ports) as process:
        wait_until_open(process, f"http://127.0.0.1:{http}/v2/health/ready")
        with InferenceServerClient(f"127.0.0.2:{grpc}") as client:  # not only 127.0.0.1
            assert client.is_model_ready("tiny")
        assert not answers(f"http://127.0.0.2:{http}/v2/health/ready"), "HTTP stays on loopback's own address"
        eventually(lambda: answers(f"http://127.0.0.1:{metrics}/metrics"))  # which Triton opens last
        eventually(lambda: inferences(metrics) > 3, 60)  # it is watched: the first one reads the labels
        family = descendants(process.pid)
        stubs = [
            pid for pid, name in zip(family, commands(family), strict=True) if name == "triton_python_backend_stub"
        ]
        assert stubs
        for stub in stubs:
            os.kill(stub, signal.SIGKILL)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 1
        assert "two years of security fixes" in said
        assert re.search(r"^deit: the process \d+, which ran a model, ended with signal 9$", said, re.MULTILINE)
        assert "Traceback" not in said
        eventually(lambda: not any(map(is_alive, family)))


@pytest.mark.parametrize(("arguments", "host"), [([], "127.0.0.1"), (["--host=::1"], "[::1]")], ids=["IPv4", "IPv6"])
def test_sigterm_stops_it_and_leaves_nothing(model_repository, arguments, host):
    grpc, metrics = free_ports(2)
    ports = [f"--triton-grpc-port={grpc}", f"--triton-metrics-port={metrics}"]
    with deit_triton("--model-repository", model_repository, *arguments, *ports) as process:
        wait_until_open(process, f"http://{host}:{metrics}/metrics")
        with InferenceServerClient(f"{host}:{grpc}") as client:
            eventually(lambda: client.is_model_ready("tiny"))
        family = descendants(process.pid)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 0, said
    assert "security fixes made since October 2024 and therefore listens on loopback only" in said
    assert not any(map(is_alive, family))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--host=0.0.0.0"], "--insecure"),
        (["--host=localhost"], "IP address"),
        (["--triton-http-port=8001"], "cannot share"),
    ],
)
def test_wrong_usage_is_told(arguments, complaint):
    done = deit("triton", *arguments)
    assert done.returncode == 2
    assert complaint in done.stderr
