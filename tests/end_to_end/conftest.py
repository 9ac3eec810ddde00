"""`deit serve` as its users start it: a process, asked over HTTP."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmark.server import running
from deit.ports import free_ports
from tests.serving.conftest import eventually, is_alive

STOP_TIMEOUT_S = 60
"""Triton alone may take ten."""


@contextmanager
def serving(repository: Path, *options: str, grpc_port: int | None = None, max_wait_s: float = 60) -> Iterator[str]:
    """The base URL of a gateway with an embedded Triton that serves `repository`, ready when the block starts.

    A busy machine answers late, and `max_wait_s` keeps the gateway from refusing requests for it.
    """
    port, grpc, metrics = free_ports(3)
    command = [
        *(str(Path(sys.executable).with_name("deit")), "serve", "--model-repository", str(repository)),
        *("--port", str(port)),
        *("--max-wait-s", str(max_wait_s), *options),
        *("--triton-grpc-port", str(grpc_port or grpc), "--triton-metrics-port", str(metrics)),
    ]
    url = f"http://127.0.0.1:{port}"
    with running(command, name="deit serve") as server:
        server.wait_until(lambda: httpx.get(f"{url}/readyz").status_code == 200)
        yield url
        os.kill(server.pid, signal.SIGTERM)
        eventually(lambda: not is_alive(server.pid), STOP_TIMEOUT_S)
