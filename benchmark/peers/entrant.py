"""A server in the comparison, and one window of load on it."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmark.config import PeersConfig
from benchmark.load import Load, closed_loop, requests_of
from benchmark.peers.tuning import Shape, peer_server
from benchmark.processes import ServerProcesses, watched
from benchmark.repository import only, onnx_file
from benchmark.server import CLASSIFY, our_server
from deit.repository.models import ModelVersion

WARM_UP_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A server with the model that it serves; `shape` is None for ours, which runs with its defaults."""

    server: str
    model: ModelVersion
    shape: Shape | None

    @contextlib.contextmanager
    def running(self, config: PeersConfig, image: bytes) -> Iterator[tuple[str, int]]:
        """The URL to which images are posted, and the first process of the server."""
        if self.shape is None:
            with only(self.model.model) as repository, our_server(repository) as server:
                yield f"{server.url}{CLASSIFY}?model={self.model.name}", server.pid
            return
        graph = onnx_file(self.model)
        assert graph is not None
        with peer_server(
            self.server,
            self.shape,
            onnx_file=graph,
            preprocessing=self.model.preprocessing.to_json(),
            environments=config.environments,
            image=image,
        ) as address:
            yield address


@dataclass(frozen=True, kw_only=True)
class Window:
    """What one window of load on one server found."""

    load: Load
    server_cpu_s: float
    memory_mib: float

    @property
    def cpu_ms_per_image(self) -> float:
        """Processor time of the server for an image that was answered."""
        return 1000 * self.server_cpu_s / sum(answer.is_ok for answer in self.load.answers)


def measure(url: str, images: Sequence[bytes], *, pid: int, concurrency: int, seconds: float) -> Window:
    use, requests = ServerProcesses.of(pid).use, requests_of(url, images, as_form=False)
    loop = closed_loop(url, requests, concurrency=concurrency, duration_s=seconds, warm_up_s=WARM_UP_S)
    load, before, after = watched(loop, use, warm_up_s=WARM_UP_S, seconds=seconds)
    return Window(load=load, server_cpu_s=after.total_cpu_s - before.total_cpu_s, memory_mib=after.memory_mib)
