"""The lifecycle of the embedded Triton: start, watch, restart, stop.

**Start** (`embedded_triton`). The binary comes from a wheel (wheel.py). It gets a folder for this run (run_folder.py)
with our backends and a snapshot of the model repository (snapshot.py), and its options (command_line.py). It runs as a
child process (process.py) that the kernel kills when ours is killed (with_parent.py).

**Watch** (`EmbeddedTriton.watch`). Three checks run ten times a second, because Triton's own health says "ready" while
the process that runs a model is dead:

1. The process has ended.
2. The kernel: a process of Triton is stopped, or one that ran a model died (`TritonProcess.ailment`).
3. A model has not answered for seconds, not even the gateway's probe (serving/gateway/readiness.py).

**Restart.** What is left of Triton is killed, and a new one is started, which loads the models again. The first restart
is immediate, the next ones wait longer and longer. After too many in a row the watch returns, and `failure` says why.

**Stop.** When the block of `embedded_triton` ends, Triton unloads its models, and is killed if that takes too long.
"""

import asyncio
import ipaddress
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from deit.errors import ServingError
from deit.ports import LOOPBACK
from deit.repository.models import model_names
from serving.embedded.command_line import CONTROL_HEADER, triton_options
from serving.embedded.jpeg_step import write_step
from serving.embedded.ports import check_port_is_free
from serving.embedded.process import TritonProcess
from serving.embedded.run_folder import close_shared_memory, remove_shared_memory, run_folder, shared_memory_prefix
from serving.embedded.snapshot import Offer, Snapshot
from serving.embedded.wheel import find_wheel
from serving.gateway.readiness import SILENCE_ENDS_S, Readiness, in_background
from serving.settings.triton import TritonSettings

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.1

# The first restart comes at once: a single crash should cost no more than loading the models.
SECOND_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0

STEADY_S = 60.0
"""After this long without trouble, the next failure counts as the first."""


@dataclass(eq=False, repr=False)
class EmbeddedTriton:
    """The Triton of this run, over its restarts. Belongs to the main thread, from which Triton must be started.

    Attributes:
        process: the current one.
        snapshot: the model repository as this Triton sees it.
        offers: the last offer of each model that it was shown.
        control_headers: gRPC headers that loading models needs; empty if it is forbidden.
        shared_memory_key: the key for registering shared memory; None if it is forbidden.
        failure: why it was given up, once it was.
    """

    command: Sequence[str]
    environment: Mapping[str, str]
    snapshot: Snapshot
    offers: dict[str, Offer]
    control_headers: dict[str, str]
    shared_memory_key: str | None
    most_restarts: int
    start_timeout_s: float
    failure: ServingError | None = field(default=None, init=False)
    process: TritonProcess = field(init=False)

    def __post_init__(self) -> None:
        self.process = TritonProcess(self.command, self.environment)

    @asynccontextmanager
    async def watched(self, readiness: Readiness) -> AsyncIterator[None]:
        """Watch while the block runs."""
        async with in_background(self.watch(readiness)):
            yield

    async def watch(self, readiness: Readiness) -> None:
        """Restart Triton whenever it fails; return, with `failure`, when it failed too often in a row."""
        restarts = 0
        while True:
            steady_since_s = time.monotonic()
            reason = await self._trouble(readiness)
            if time.monotonic() - steady_since_s > STEADY_S:
                restarts = 0
            if restarts >= self.most_restarts:
                times = f", after {restarts} restarts in a row" if restarts else ""
                self.failure = ServingError(f"{reason}{times}")
                return
            pause_s = min(LONGEST_PAUSE_S, SECOND_PAUSE_S * 2 ** (restarts - 1)) if restarts else 0.0
            restarts += 1
            logger.error(
                "%s; restarting Triton in %.0f s (%d of at most %d in a row)",
                *(reason, pause_s, restarts, self.most_restarts),
            )
            await asyncio.sleep(pause_s)
            readiness.lose_all("Triton is started again", may_return=False)  # earlier findings were about the last one
            self._restart()
            await self._until_ready(readiness)

    async def _trouble(self, readiness: Readiness) -> str:
        """Return, with the reason, when Triton must be restarted."""
        ill_since_s = math.inf
        while True:
            close_shared_memory()
            if self.process.has_ended:
                readiness.lose_all("Triton has ended", may_return=False)  # first: waiting requests end with it
                return await asyncio.to_thread(self.process.end_reason) or "Triton has ended"
            if (ailment := self.process.ailment()) is not None:
                readiness.lose_all(ailment.reason, may_return=ailment.may_pass)
                # Other instances of the model may answer, but none ever comes to what the stopped one has taken.
                ill_since_s = min(ill_since_s, time.monotonic())
                if not ailment.may_pass or time.monotonic() - ill_since_s > SILENCE_ENDS_S:
                    return ailment.reason
            else:
                ill_since_s = math.inf
            if (reason := readiness.beyond_hope()) is not None:
                said = self.process.errors()
                return f"Triton runs, but a model does not: {'; '.join(said) if said else reason}"
            await asyncio.sleep(LOOK_EVERY_S)

    def _restart(self) -> None:
        self.process.kill()
        remove_shared_memory()
        self.process = TritonProcess(self.command, self.environment)

    async def _until_ready(self, readiness: Readiness) -> None:
        """Return when every model answers or did not load, or when it is clear that this start failed too."""
        started_s = time.monotonic()
        while not self.process.has_ended and time.monotonic() - started_s < self.start_timeout_s:
            close_shared_memory()
            if readiness.is_settled():
                logger.info("Triton is ready again after %.1f s", time.monotonic() - started_s)
                return
            await asyncio.sleep(LOOK_EVERY_S)


@contextmanager
def embedded_triton(
    settings: TritonSettings,
    *,
    most_restarts: int,
    host: str = LOOPBACK,
    allow_reload: bool = False,
    shared_memory: bool = False,
    traces_url: str | None = None,
) -> Iterator[EmbeddedTriton]:
    """A Triton that is loading the models; it is stopped when the block ends.

    Args:
        host: address of gRPC and metrics.
        most_restarts: in a row, before `watch` gives up.
        traces_url: where an OpenTelemetry collector takes spans.

    Raises:
        ServingError, RepositoryError: it cannot be started here, and why.
    """
    wheel = find_wheel()
    model_names(settings.model_repository)  # before anything is made
    for flag, port in settings.ports.by_flag().items():
        check_port_is_free(port, flag)
    with run_folder() as folder:
        wheel.assemble_backends(folder / "backends")
        # Triton would also load `.name.abc`, which a killed export leaves behind. And it puts the path of a model on a
        # command line without quotes, where a space breaks it (Triton 2.51).
        snapshot = Snapshot(settings.model_repository, folder / "models")
        snapshot.folder.mkdir()
        offers = snapshot.offers()
        for name, offer in offers.items():
            snapshot.show(name, offer, offer.versions)
        if settings.decodes_on is not None:
            write_step(snapshot.folder, settings.decodes_on)
        control_key = secrets.token_urlsafe(32) if allow_reload else None
        shared_memory_key = secrets.token_urlsafe(32) if shared_memory else None
        options = triton_options(
            wheel.version,
            model_repository=snapshot.folder,
            backend_directory=folder / "backends",
            shared_memory_prefix=shared_memory_prefix(),
            ports=settings.ports,
            host=host,
            control_key=control_key,
            shared_memory_key=shared_memory_key,
            traces_url=traces_url,
        )
        logger.info(
            "starting Triton %d.%d (release 24.10) with %s; it lacks security fixes made since October 2024 and %s",
            *wheel.version,
            ", ".join(offers),
            "therefore listens on loopback only"
            if ipaddress.ip_address(host).is_loopback
            else f"listens on {host} as you asked",
        )
        triton = EmbeddedTriton(
            [str(wheel.binary), *options],
            wheel.environment(),
            snapshot,
            offers,
            {} if control_key is None else {f"triton-grpc-protocol-{CONTROL_HEADER}": control_key},
            shared_memory_key,
            most_restarts=most_restarts,
            start_timeout_s=settings.start_timeout_s,
        )
        try:
            yield triton
        finally:
            triton.process.stop()
