"""Starts servers for a measurement, waits until they are ready, and stops them with all their children."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx
import psutil

from benchmark.config import Served
from benchmark.load import media_type_of
from deit.errors import BenchmarkError
from deit.ports import free_ports

CLASSIFY = "/classify"

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Server:
    """Addresses of a gateway and of the Triton behind it (host:port of gRPC), and the root of its processes."""

    url: str
    triton_url: str
    pid: int


@contextlib.contextmanager
def our_server(
    repository: Path, *, default_model: str | None = None, exact: bool = False, triton_decode: str | None = None
) -> Iterator[Server]:
    """`deit serve` on free ports with its defaults, except that, like the peers, it does not log requests.

    Args:
        exact: with the pixels of Pillow and timm.
        triton_decode: "gpu" or "cpu" where Triton is to decode JPEGs.
    """
    port, grpc, metrics = free_ports(3)
    url = f"http://127.0.0.1:{port}"
    command = [
        *(sys.executable, "-m", "deit", "serve", "--model-repository", str(repository), "--port", str(port)),
        *("--triton-grpc-port", str(grpc), "--triton-metrics-port", str(metrics), "--no-log-requests"),
        *(() if default_model is None else ("--default-model", default_model)),
        *(("--decode", "exact") if exact else ()),
        *(() if triton_decode is None else ("--triton-decode", triton_decode)),
    ]
    with running(command, name="deit serve") as process:
        process.wait_until(lambda: httpx.get(f"{url}/readyz").status_code == 200)
        yield Server(url=url, triton_url=f"127.0.0.1:{grpc}", pid=process.pid)


@contextlib.contextmanager
def addresses(config: Served) -> Iterator[tuple[str, str]]:
    """URL of the gateway and gRPC address of Triton, for as long as the block lasts."""
    if config.serve is None:
        yield config.url, config.triton_url
        return
    with our_server(config.serve, default_model=config.model) as server:
        yield server.url, server.triton_url


class Running:
    """A server's process and its log. `pid` is the root of all its processes."""

    def __init__(self, process: subprocess.Popen[bytes], log: IO[bytes], name: str) -> None:
        self._process = process
        self.pid = process.pid
        self._log = log
        self._name = name

    def wait_until(self, is_ready: Callable[[], bool]) -> None:
        """Raises BenchmarkError with the last lines of the log when the server ends, or is not ready in time."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            with contextlib.suppress(httpx.TransportError):
                if is_ready():
                    return
            status = self._process.poll()
            if status is not None or time.monotonic() > deadline:
                self._log.seek(0)
                words = [line[-500:] for line in self._log.read().decode(errors="replace").splitlines()[-8:]]
                finding = "did not start in time" if status is None else f"ended with status {status}"
                raise BenchmarkError("\n".join([f"{self._name} {finding}:", *words]))
            time.sleep(0.1)


def answers(url: str, image: bytes) -> bool:
    """Whether a server classifies the image."""
    headers = {"Content-Type": media_type_of(image)}
    return httpx.post(url, content=image, headers=headers, timeout=60).status_code == 200


@contextlib.contextmanager
def running(command: Sequence[str], *, name: str, environment: Mapping[str, str] | None = None) -> Iterator[Running]:
    """A process that is ended when the block is left, with all its children."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield Running(process, log, name)
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to stop, then kill what remains; some servers leave their workers behind."""
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT_S)
    for each in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.kill()
    process.wait()
