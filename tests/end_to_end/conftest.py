"""`deit serve` as its users start it: a process, asked over HTTP."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import httpx

from deit.ports import free_ports
from tests.serving.conftest import START_TIMEOUT_S

STOP_TIMEOUT_S = 60
"""Triton alone may take ten."""


@contextmanager
def serving(repository: Path, *options: str, grpc_port: int | None = None, max_wait_s: float = 60) -> Iterator[str]:
    """The base URL of a gateway with an embedded Triton that serves `repository`, ready when the block starts.

    A busy machine answers late, and `max_wait_s` keeps the gateway from refusing requests for it.
    """
    port, grpc, metrics = free_ports(3)
    command = [
        *(Path(sys.executable).with_name("deit"), "serve", "--model-repository", repository, "--port", str(port)),
        *("--max-wait-s", str(max_wait_s), *options),
        *("--triton-grpc-port", str(grpc_port or grpc), "--triton-metrics-port", str(metrics)),
    ]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stderr=log, stdout=subprocess.DEVNULL) as process,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(url, process, log)
            yield url
        finally:
            process.terminate()
            _wait_for_the_end(process, log)


def _wait_for_the_end(process: subprocess.Popen[bytes], log: IO[str]) -> None:
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        log.seek(0)
        raise AssertionError(f"deit serve did not end in {STOP_TIMEOUT_S} s, its log:\n{log.read()}") from None


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: IO[str]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            raise AssertionError(f"deit serve was not ready; status {process.returncode}, its log:\n{log.read()}")
        time.sleep(0.1)
