"""`deit serve`: Triton and the gateway, and `deit triton`: Triton alone. They start in order and end together.

SIGTERM and Ctrl-C: the gateway accepts no new requests and finishes those it has, then Triton stops. A second signal
ends everything at once. SIGHUP: `deit serve` reads its file of API keys again; without one it stops as with SIGTERM.
"""

import asyncio
import contextlib
import gc
import ipaddress
import logging
import os
import resource
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

import typer

from deit import fast_resize
from deit.errors import ServingError
from deit.jpeg_step import STEP
from deit.model import EXPLAIN_SUFFIX
from deit.options import named
from deit.ports import LOOPBACK
from deit.repository.models import model_names
from serving.embedded.control import claim_control_socket
from serving.embedded.ports import with_free_ports
from serving.embedded.reload import Reloader
from serving.embedded.triton import EmbeddedTriton, embedded_triton
from serving.gateway.admission import Admission
from serving.gateway.api_keys import ApiKeys, load_api_keys
from serving.gateway.app import Access, Companion, create_app
from serving.gateway.candidates import check_candidates
from serving.gateway.capture import Capture
from serving.gateway.client_address import networks
from serving.gateway.connection import addresses_of, wait_until_ready
from serving.gateway.metrics import Metrics
from serving.gateway.models import Discovered, ServedModel, discover_models
from serving.gateway.readiness import PROBE_TIMEOUT_S, Readiness, in_background
from serving.gateway.server import GatewayServer, bracketed, reserve_port, url_of
from serving.gateway.tracing import Tracing, traces_url
from serving.gateway.triton_client import TritonClient
from serving.settings.serve import ServeSettings
from serving.settings.standalone import StandaloneSettings

logger = logging.getLogger(__name__)

GARBAGE_THRESHOLD = 20_000
"""Number of new objects still alive after which Python looks for cycles among the youngest."""

LOOK_EVERY_S = 0.1

OPEN_FILES = 65_536
"""More than the number of connections that a gateway has memory for."""

BANNER = """
********************************************************************************
  This is the Triton of a Python package: version 2.51 of October 2024, without
  two years of security fixes. It listens on {address}.
  Keep it on a network that only the gateway can reach. For production use
  NVIDIA's image, 26.07 or later: docs/deploy.md
********************************************************************************"""


class StopSignal:
    """SIGTERM or Ctrl-C: the first is recorded and acted on when that is safe; the second raises KeyboardInterrupt.

    Python's own handler raises at once, in the middle of whatever runs, such as the constructor of a gRPC client.
    """

    def __init__(self) -> None:
        self._is_received = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._receive)

    def note(self) -> None:
        self._is_received = True

    def raise_if_received(self) -> None:
        if self._is_received:
            raise KeyboardInterrupt

    def _receive(self, number: int, frame: object) -> None:
        self.raise_if_received()
        self.note()


def serve(settings: ServeSettings) -> None:
    """Return after a signal to stop.

    Raises:
        ServingError, RepositoryError: the server cannot start, or Triton failed too often.
    """
    stop = StopSignal()
    allow_open_files()
    with contextlib.suppress(KeyboardInterrupt), ExitStack() as stack:
        access = read_access(settings)
        admits_strangers = settings.insecure or access.keys is not None
        listener = stack.enter_context(reserve_port(settings.host, settings.port, admits_strangers=admits_strangers))
        listeners = [listener]
        if (port := settings.metrics_port) is not None:  # open to anyone who reaches it, as its option says
            metrics_listener = reserve_port(settings.host, port, admits_strangers=True, flag="--metrics-port")
            listeners.append(stack.enter_context(metrics_listener))
        triton, triton_url = triton_of(settings, stack)
        urls = addresses_of(triton_url)
        discovered = loaded_models(urls, triton, stop, timeout_s=settings.triton.start_timeout_s)
        address = url_of(listener)
        server = gateway_server(
            *(settings, urls, discovered, access, stop, triton, listener),
            on_ready=lambda: say_ready(settings, address, discovered),
        )
        signal.signal(signal.SIGHUP, on_hangup(settings, access.keys) or server.handle_exit)
        collect_less_garbage()
        server.run(listeners)
        if triton is not None and triton.failure is not None:
            raise triton.failure
    logger.info("stopped")


def run_triton(settings: StandaloneSettings) -> None:
    """The embedded Triton alone, for a separate container behind `deit serve --triton-url`.

    It is watched as in `deit serve`. If a model or Triton is lost, the process exits, and the container's restart
    policy starts it again. Returns after a signal to stop.

    Raises:
        ServingError, RepositoryError: Triton cannot be started, or it or a model of it died or hangs.
    """
    stop = StopSignal()
    ports = with_free_ports(settings.triton.ports, avoids_taken=False)
    triton_settings = replace(settings.triton, ports=ports)
    if not ipaddress.ip_address(settings.host).is_loopback:
        typer.echo(BANNER.format(address=f"{bracketed(settings.host)}:{ports.grpc}"), err=True)
    own_host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(settings.host, settings.host)
    url = f"{bracketed(own_host)}:{ports.grpc}"
    with (
        contextlib.suppress(KeyboardInterrupt),
        embedded_triton(
            triton_settings, most_restarts=0, host=settings.host, traces_url=traces_url(os.environ)
        ) as triton,
    ):
        discovered = loaded_models([url], triton, stop, timeout_s=settings.triton.start_timeout_s)
        asyncio.run(watch(triton, url, discovered.models, stop))
    logger.info("stopped")


async def watch(
    triton: EmbeddedTriton,
    url: str,
    models: dict[str, ServedModel],
    stop: StopSignal,
    *,
    probe_timeout_s: float = PROBE_TIMEOUT_S,
) -> None:
    """Never returns: a signal raises KeyboardInterrupt, a loss ServingError."""
    client = TritonClient(url)
    readiness = Readiness(client, models.values(), probe_timeout_s=probe_timeout_s)
    try:
        async with in_background(readiness.watch()), triton.watched(readiness):
            while triton.failure is None:
                stop.raise_if_received()
                await asyncio.sleep(LOOK_EVERY_S)
        raise triton.failure
    finally:
        await client.close()


def loaded_models(
    urls: Sequence[str], triton: EmbeddedTriton | None, stop: StopSignal, *, timeout_s: float
) -> Discovered:
    """The models of the first of these Tritons that has loaded them.

    Raises:
        KeyboardInterrupt: a signal asked to stop.
        ServingError: Triton ended, or was not ready in time; it serves no such model; or it cannot decode and should.
    """

    def raise_if_in_vain() -> None:
        stop.raise_if_received()
        if triton is not None:
            triton.process.raise_if_ended()

    ready = wait_until_ready(urls, timeout_s=timeout_s, raise_if_in_vain=raise_if_in_vain)
    discovered = discover_models(ready, None if triton is None else triton.control_headers)
    stop.raise_if_received()
    if triton is not None and STEP in discovered.broken:
        reason = discovered.broken[STEP].splitlines()[0]
        raise ServingError(f"{named('--triton-decode')} is in vain: {reason}")
    return discovered


def gateway_server(
    settings: ServeSettings,
    triton_urls: Sequence[str],
    discovered: Discovered,
    access: Access,
    stop: StopSignal,
    triton: EmbeddedTriton | None,
    listener: socket.socket,
    *,
    on_ready: Callable[[], object],
) -> GatewayServer:
    if settings.decoding.mode == "fast" and not fast_resize.IS_AVAILABLE:
        logger.warning("cykooz-resizer is not installed (it has wheels only for x86-64): Pillow resizes images")
    admission, models = Admission(settings.limits), discovered.models
    metrics = Metrics(models, admission)
    default_model = choose_default(settings.default_model, discovered.names())
    check_candidates(settings.candidates, discovered)
    companions: list[Companion] = []
    shared_memory_key = settings.shared_memory_key.text if settings.shared_memory_key else None
    if triton is not None:
        shared_memory_key = triton.shared_memory_key
        companions.append(triton.watched)
        if settings.allow_reload:
            path = claim_control_socket(listener.getsockname()[1])
            reloader = Reloader(triton, triton_urls[0], models, default_model, metrics, admission, path)
            companions.append(reloader.commands)
    app = create_app(
        settings,
        triton_urls,
        models=None if triton is None else models,
        broken=discovered.broken,
        default_model=default_model,
        access=access,
        admission=admission,
        metrics=metrics,
        tracing=None if traces_url(os.environ) is None else Tracing(),
        companions=companions,
        capture=None if (folder := settings.capture.folder) is None else Capture(folder, settings.capture, metrics),
        shared_memory_key=shared_memory_key,
    )
    return GatewayServer(
        settings,
        app,
        admission,
        on_ready=on_ready,
        on_stop=stop.note,
        has_failed=lambda: triton is not None and triton.failure is not None,
    )


def triton_of(settings: ServeSettings, stack: ExitStack) -> tuple[EmbeddedTriton | None, str]:
    """The embedded Triton, started on ports that are free and stopped with the stack, or None where --triton-url names
    another; and the address to ask.

    Raises:
        ServingError, RepositoryError: any error that is known before its models have loaded.
    """
    if settings.triton_url is not None:
        return None, settings.triton_url
    choose_default(settings.default_model, model_names(settings.triton.model_repository))
    own = replace(settings.triton, ports=with_free_ports(settings.triton.ports, avoids_taken=True))
    triton = embedded_triton(
        own,
        most_restarts=settings.triton_restarts,
        allow_reload=settings.allow_reload,
        shared_memory=settings.shared_memory,
        traces_url=traces_url(os.environ),
    )
    return stack.enter_context(triton), f"{LOOPBACK}:{own.ports.grpc}"


def say_ready(settings: ServeSettings, address: str, discovered: Discovered, gateways: int = 1) -> None:
    if settings.log.format == "json":  # for programs, which read every line
        logger.info("ready", extra={"address": address, "models": list(discovered.models), "gateways": gateways})
        return
    several = f", {gateways} gateways" if gateways > 1 else ""
    typer.echo(f"Ready: {address} (models: {', '.join(discovered.models)}){several}")
    typer.echo(f"Try:   curl -F image=@photo.jpg {address}/classify")


def allow_open_files() -> None:
    """Raise the soft limit: each connection is an open file, and the usual 1,024 is for programs that use select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def collect_less_garbage() -> None:
    """Loaded objects stay, and a request leaves few reference cycles behind: collecting them costs more than they do.

    With Python's threshold of 700 objects nearly every request caused a collection, a twentieth of the gateway's time.
    """
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)


def choose_default(wanted: str | None, names: Sequence[str]) -> str:
    """The wanted model, else the first by name that does not only explain another.

    Even if that model could not be loaded: otherwise another would silently answer in its place.
    """
    if wanted is None:
        return next((name for name in names if not name.endswith(EXPLAIN_SUFFIX)), names[0])
    if wanted not in names:
        raise ServingError(
            f"{named('--default-model')} is {wanted}, which is not served; choose from: {', '.join(names)}"
        )
    return wanted


def on_hangup(settings: ServeSettings, keys: ApiKeys | None) -> Callable[[int, object], None] | None:
    """A handler that reads the key file again; None without a key file."""
    if keys is None or settings.api_keys_file is None:
        return None
    from_environment = settings.api_keys.text if settings.api_keys else None
    return lambda number, frame: keys.reload(settings.api_keys_file, from_environment)


def read_access(settings: ServeSettings) -> Access:
    keys = load_api_keys(settings.api_keys_file, settings.api_keys.text if settings.api_keys else None)
    if keys is None and settings.rate_limit is not None:
        raise ServingError(
            f"{named('--rate-limit')} is per API key, and there are none; set {named('--api-keys-file')}, or drop it"
        )
    return Access(
        keys=keys,
        rate_limit=settings.rate_limit,
        cors_origins=settings.origins,
        trusted_proxies=networks(settings.trusted_proxies),
    )
