"""The compared servers, and the few settings of each that are tried first.

The work is the same everywhere, so the settings differ in shape only: as many workers as cores with one computing
thread each, or one worker whose model computes on all cores; with batches of up to eight where a server makes them.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmark.peers.classifier import PeerSettings
from benchmark.peers.environments import environment
from benchmark.server import CLASSIFY, answers, running
from deit.ports import free_ports

SERVERS = Path(__file__).parent
CHECKOUT = SERVERS.parents[1]

MAX_BATCH_SIZE = 8
BATCH_DELAY_S = 0.005


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One setting of a peer.

    Attributes:
        workers: processes or threads that compute.
        threads: of the model in each worker.
        max_batch_size: 1 where the server makes no batches.
    """

    workers: int
    threads: int
    max_batch_size: int

    def __str__(self) -> str:
        return f"{self.workers} x {self.threads} threads, batch {self.max_batch_size}"


def shapes(peer: str, cores: int) -> list[Shape]:
    """The settings to try for a peer."""
    size = 1 if peer in ("fastapi", "bentoml") else MAX_BATCH_SIZE
    return [
        Shape(workers=cores, threads=1, max_batch_size=size),
        Shape(workers=1, threads=cores, max_batch_size=size),
    ]


@contextlib.contextmanager
def peer_server(
    peer: str, shape: Shape, *, onnx_file: Path, preprocessing: str, environments: Path, image: bytes
) -> Iterator[tuple[str, int]]:
    """The URL to which images are posted and the first process of a peer, which has answered `image`.

    Raises:
        BenchmarkError: its environment cannot be created, or it does not start; the message ends with its last output.
    """
    programs = environment(peer, environments)
    settings = PeerSettings(
        onnx_file=str(onnx_file.absolute()),
        preprocessing=preprocessing,
        port=free_ports(1)[0],
        workers=shape.workers,
        threads=shape.threads,
        max_batch_size=shape.max_batch_size,
        batch_delay_s=BATCH_DELAY_S if shape.max_batch_size > 1 else 0,
    )
    url = f"http://127.0.0.1:{settings.port}{CLASSIFY}"
    variables = {
        **settings.to_environment(),
        "PYTHONPATH": str(CHECKOUT),
        # none of them needs reporting
        "BENTOML_DO_NOT_TRACK": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with running(_command(peer, programs.absolute(), settings.port), name=peer, environment=variables) as process:
        process.wait_until(lambda: answers(url, image))
        yield url, process.pid


def _command(peer: str, programs: Path, port: int) -> list[str]:
    if peer == "bentoml":
        service = "benchmark.peers.bentoml_server:BentoService"
        return [
            *(str(programs / "bentoml"), "serve", service, "--working-dir", str(CHECKOUT)),
            *("--host", "127.0.0.1", "--port", str(port)),
        ]
    script = [str(programs / "python"), str(SERVERS / f"{peer}_server.py")]
    if peer == "mosec":  # it takes these from the command line alone
        return [*script, "--address", "127.0.0.1", "--port", str(port), "--timeout", "60000"]
    return script
