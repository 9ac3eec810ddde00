"""Several gateways on one port: `deit serve --gateways N`.

A gateway is one process with one event loop, which handles about 800 images a second on any machine. The supervisor is
the parent of the gateways and of the embedded Triton. Each gateway has its own listening socket on the same port
(SO_REUSEPORT), and the kernel distributes connections among them. The supervisor keeps the sockets open, so if a
gateway dies, its callers wait for its replacement instead of being refused. Decoders and the in-flight limits are
divided evenly, and any gateway answers /metrics for all of them.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from prometheus_client.multiprocess import mark_process_dead

from deit.errors import ServingError
from deit.options import Secret
from serving.embedded import with_parent
from serving.embedded.run_folder import close_shared_memory
from serving.embedded.triton import EmbeddedTriton
from serving.gateway.connection import addresses_of
from serving.gateway.decoder_handle import PACKAGES
from serving.gateway.models import ServedModel
from serving.gateway.readiness import LONGEST_PROBE_TIMEOUT_S, in_background
from serving.gateway.server import reserve_port, url_of
from serving.launcher import (
    LOOK_EVERY_S,
    StopSignal,
    allow_open_files,
    choose_default,
    loaded_models,
    read_access,
    say_ready,
    triton_of,
    watch,
)
from serving.settings.decoding import Decoding
from serving.settings.serve import ServeSettings
from serving.settings.triton import TritonPorts

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 60.0

PAUSE_AFTER_LOSS_S = 1.0
"""Shortest time between two starts of a gateway, in case it exits immediately."""


@dataclass(frozen=True, kw_only=True)
class GatewayTask:
    """What a gateway gets when it starts.

    Attributes:
        listeners: file descriptors of its sockets, that of --port first.
        ready: file descriptor to write a byte to when it listens.
    """

    settings: ServeSettings
    listeners: tuple[int, ...]
    ready: int


def share_of(
    settings: ServeSettings, count: int, triton_url: str, shared_memory_key: str | None = None
) -> ServeSettings:
    """The settings of one of `count` gateways in front of that Triton, and the key of an embedded one.

    Together they keep to the limits, except that each may still take the largest request, and one small image next to a
    large one.
    """
    limits = replace(
        settings.limits,
        max_in_flight_bytes=max(settings.limits.max_body_bytes, settings.limits.max_in_flight_bytes // count),
        max_in_flight_pixels=max(settings.limits.max_image_pixels, settings.limits.max_in_flight_pixels // count),
    )
    decoders = max(2, -(-settings.decoding.processes // count))  # at least two, so that one stays free of large images
    return replace(
        settings,
        gateways=1,
        triton=replace(settings.triton, ports=TritonPorts(), decodes_on=None),
        triton_url=triton_url,
        shared_memory_key=settings.shared_memory_key if shared_memory_key is None else Secret(shared_memory_key),
        limits=limits,
        decoding=Decoding(processes=decoders, mode=settings.decoding.mode),
    )


class GatewayProcess:
    """One gateway, and the sockets that outlive it."""

    def __init__(self, settings: ServeSettings, listeners: Sequence[socket.socket], metrics_folder: str) -> None:
        self._settings = settings
        self._listeners = listeners
        self._metrics_folder = metrics_folder
        self._process: subprocess.Popen[bytes] | None = None
        self._ready: int | None = None
        self._started_s = 0.0

    def start(self) -> None:
        self._started_s = time.monotonic()
        if self._ready is not None:
            os.close(self._ready)
            self._ready = None
        self._ready, theirs = os.pipe()
        try:
            self._process = self._started(theirs)
        finally:
            os.close(theirs)

    def _started(self, ready: int) -> subprocess.Popen[bytes]:
        descriptors = tuple(listener.fileno() for listener in self._listeners)
        # the same packages as here, wherever the command was found
        packages = os.pathsep.join(filter(None, [str(PACKAGES), os.environ.get("PYTHONPATH")]))
        process = subprocess.Popen(
            [
                *(sys.executable, "-IS", with_parent.__file__, str(os.getpid())),
                *(sys.executable, "-P", "-m", "serving.gateway_process"),
            ],
            env={**os.environ, "PYTHONPATH": packages, "PROMETHEUS_MULTIPROC_DIR": self._metrics_folder},
            stdin=subprocess.PIPE,
            pass_fds=(*descriptors, ready),
            process_group=0,  # Ctrl-C reaches only the supervisor, which passes it on
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # it has ended, which is noticed later
            pickle.dump(GatewayTask(settings=self._settings, listeners=descriptors, ready=ready), pipe)
        return process

    def wait_until_ready(self, stop: StopSignal, timeout_s: float) -> None:
        """Raises ServingError if it ends or listens too late; its own messages are in the log."""
        deadline_s = time.monotonic() + timeout_s
        assert self._ready is not None  # it was started
        while not select.select([self._ready], [], [], LOOK_EVERY_S)[0]:
            stop.raise_if_received()
            if time.monotonic() > deadline_s:
                raise ServingError(f"a gateway was not ready after {timeout_s:g} s")
        if not os.read(self._ready, 1):
            raise ServingError("a gateway ended before it was ready; the log above says why")

    def look(self) -> None:
        """Start a new process if it has ended."""
        process = self._process
        if process is None or process.poll() is None or time.monotonic() - self._started_s < PAUSE_AFTER_LOSS_S:
            return
        logger.error("a gateway exited with status %d and is being replaced", process.returncode)
        mark_process_dead(process.pid, self._metrics_folder)  # type: ignore[no-untyped-call]
        try:
            self.start()
        except OSError as error:  # too few files, processes or memory at the moment
            logger.error("%s; trying again in %.0f s", error, PAUSE_AFTER_LOSS_S)

    def send(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def wait(self) -> None:
        if self._process is not None:
            self._process.wait()

    def kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def supervise(settings: ServeSettings, count: int) -> None:
    """Serve with `count` gateways; return after a signal to stop.

    Raises:
        ServingError, RepositoryError: the server cannot start, or Triton failed too often.
    """
    stop = StopSignal()
    allow_open_files()
    with contextlib.suppress(KeyboardInterrupt), ExitStack() as stack:
        access = read_access(settings)
        sockets = shared_sockets(stack, settings, count, admits_strangers=settings.insecure or access.keys is not None)
        triton, triton_url = triton_of(settings, stack)
        timeout_s = settings.triton.start_timeout_s
        discovered = loaded_models(addresses_of(triton_url), triton, stop, timeout_s=timeout_s)
        choose_default(settings.default_model, discovered.names())
        metrics_folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="deit-metrics-"))
        mine = share_of(settings, count, triton_url, None if triton is None else triton.shared_memory_key)
        gateways = [GatewayProcess(mine, listeners, metrics_folder) for listeners in sockets]
        close_shared_memory()  # before it holds a caller's picture
        stack.callback(end, gateways, sockets)
        for gateway in gateways:
            gateway.start()
        for gateway in gateways:
            gateway.wait_until_ready(stop, START_TIMEOUT_S)
        if access.keys is not None and settings.api_keys_file is not None:
            signal.signal(signal.SIGHUP, lambda number, frame: send_to(gateways, number))
        say_ready(settings, url_of(sockets[0][0]), discovered, count)
        asyncio.run(watch_all(gateways, triton, triton_url, discovered.models, stop))
    logger.info("stopped")


def shared_sockets(
    stack: ExitStack, settings: ServeSettings, count: int, *, admits_strangers: bool
) -> list[list[socket.socket]]:
    """The sockets of each gateway: on --port, and on --metrics-port where it is set."""
    ports = [("--port", settings.port, admits_strangers)]
    if settings.metrics_port is not None:  # open to everyone, as its option says
        ports.append(("--metrics-port", settings.metrics_port, True))
    sockets: list[list[socket.socket]] = [[] for _ in range(count)]
    for flag, wanted, admits in ports:
        # exclusively at first: otherwise two servers of one user would share the port unnoticed
        with reserve_port(settings.host, wanted, admits_strangers=admits, flag=flag) as alone:
            port = alone.getsockname()[1]
        for listeners in sockets:
            listener = reserve_port(settings.host, port, admits_strangers=admits, flag=flag, shared=True)
            listeners.append(stack.enter_context(listener))
    return sockets


async def watch_all(
    gateways: Sequence[GatewayProcess],
    triton: EmbeddedTriton | None,
    url: str,
    models: dict[str, ServedModel],
    stop: StopSignal,
) -> None:
    """Never returns: a signal raises KeyboardInterrupt, the loss of Triton ServingError."""
    async with in_background(look_after(gateways)):
        if triton is not None:
            # the requests that show that a busy model is alive go through the gateways, unseen here
            await watch(triton, url, models, stop, probe_timeout_s=LONGEST_PROBE_TIMEOUT_S)
        while True:
            stop.raise_if_received()
            await asyncio.sleep(LOOK_EVERY_S)


async def look_after(gateways: Sequence[GatewayProcess]) -> None:
    while True:
        for gateway in gateways:
            gateway.look()
        await asyncio.sleep(LOOK_EVERY_S)


def send_to(gateways: Sequence[GatewayProcess], number: int) -> None:
    for gateway in gateways:
        gateway.send(number)


def end(gateways: Sequence[GatewayProcess], sockets: Sequence[Sequence[socket.socket]]) -> None:
    """Let the gateways finish their requests; a second signal kills them. New callers are refused."""
    for listener in itertools.chain.from_iterable(sockets):
        listener.close()
    send_to(gateways, signal.SIGTERM)
    try:
        for gateway in gateways:
            gateway.wait()
    finally:
        for gateway in gateways:
            gateway.kill()
