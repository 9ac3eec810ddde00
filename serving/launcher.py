"""Runs Triton and the gateway together, in order, until a signal or a failure.

SIGTERM and Ctrl-C: the gateway takes no new requests and finishes those it has, then Triton stops. A second one ends
everything at once.
"""

import asyncio
import gc
import ipaddress
import logging
import math
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack

import typer
import uvicorn
from prometheus_client import start_http_server

from deit.errors import ServingError
from deit.options import named
from serving.embedded.control import claim_control_socket
from serving.embedded.embedded import EmbeddedTriton, embedded_triton
from serving.embedded.options import LOOPBACK
from serving.embedded.reload import Reloader
from serving.embedded.signals import StopSignal
from serving.embedded.supervisor import Supervisor
from serving.gateway.admission import Admission
from serving.gateway.api_keys import load_api_keys
from serving.gateway.app import Access, Companion, create_app
from serving.gateway.connection import wait_until_ready
from serving.gateway.decoder import Decoder
from serving.gateway.metrics import Metrics
from serving.gateway.models import ServedModel, discover_models
from serving.gateway.protocol import GuardedProtocol
from serving.gateway.tracing import Tracing, traces_url
from serving.settings import ServeSettings

logger = logging.getLogger(__name__)

# An idle connection is closed after this; below the idle timeout of common proxies.
KEEP_ALIVE_S = 5

GARBAGE_THRESHOLD = 20_000
"""Objects that came and did not go, after which Python looks for cycles among the youngest."""

# Requests that were sent before their client could know of the end are answered.
LATE_REQUESTS_S = 1.0


def serve(settings: ServeSettings) -> None:
    """Return when a signal asked for the end.

    Raises:
        ServingError, RepositoryError: something stands in the way, or Triton failed too often.
    """
    stop = StopSignal()
    try:
        with ExitStack() as stack:
            access = read_access(settings)
            admits_strangers = settings.insecure or access.keys is not None
            listener = stack.enter_context(reserve_port(settings.host, settings.port, admits_strangers))
            triton = supervisor = None
            if settings.triton_url is None:
                triton = stack.enter_context(
                    embedded_triton(
                        settings.triton.model_repository,
                        settings.triton.ports,
                        allow_reload=settings.allow_reload,
                        traces_url=traces_url(os.environ),
                    )
                )
                supervisor = Supervisor(
                    triton, most_restarts=settings.triton_restarts, start_timeout_s=settings.triton.start_timeout_s
                )
            url = settings.triton_url or f"{LOOPBACK}:{settings.triton.ports.grpc}"

            def raise_if_in_vain() -> None:
                stop.raise_if_received()
                if triton is not None:
                    triton.process.raise_if_ended()

            wait_until_ready(url, timeout_s=settings.triton.start_timeout_s, raise_if_in_vain=raise_if_in_vain)
            models = discover_models(url, triton.control_headers if triton is not None else None)
            stop.raise_if_received()
            server = gateway_server(settings, url, models, access, stop, triton, supervisor, listener)
            collect_less_garbage()
            server.run([listener])
            if supervisor is not None and supervisor.failure is not None:
                raise supervisor.failure
    except KeyboardInterrupt:
        logger.info("stopped")


def collect_less_garbage() -> None:
    """What is loaded by now stays, and a request leaves few cycles behind: looking for them costs more than they do.

    With Python's threshold of 700 objects this took a twentieth of the gateway's time, at most requests a look.
    """
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)


def gateway_server(
    settings: ServeSettings,
    triton_url: str,
    models: dict[str, ServedModel],
    access: Access,
    stop: StopSignal,
    triton: EmbeddedTriton | None,
    supervisor: Supervisor | None,
    listener: socket.socket,
) -> "GatewayServer":
    admission = Admission(settings.limits)
    metrics = Metrics(models, admission)
    if settings.metrics_port is not None:
        serve_metrics(metrics, settings.host, settings.metrics_port)
    default_model = choose_default(settings.default_model, models)
    companions: list[Companion] = []
    if supervisor is not None:
        companions.append(supervisor.watching)
    reloader = None
    if triton is not None and settings.allow_reload:
        reloader = Reloader(
            triton,
            triton_url,
            models,
            default_model,
            metrics,
            admission,
            control_path=claim_control_socket(listener.getsockname()[1]),
        )
        companions.append(reloader.commands)
    app = create_app(
        triton_url,
        models=models,
        default_model=default_model,
        limits=settings.limits,
        access=access,
        admission=admission,
        decoder=Decoder(settings.decoding, settings.limits, metrics.lose_decoder),
        metrics=metrics,
        tracing=None if traces_url(os.environ) is None else Tracing(),
        companions=companions,
        pins_versions=reloader is not None,
        shows_metrics=settings.metrics_port is None,
        logs_requests=settings.log_requests,
    )
    config = uvicorn.Config(
        app,
        http=GuardedProtocol,
        loop="uvloop",
        ws="none",
        lifespan="on",
        log_config=None,
        log_level=logging.ERROR,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(settings.limits.request_timeout_s) + 1,
    )
    address = url_of(listener)
    ready = f"Ready: {address} (models: {', '.join(models)})\nTry:   curl -F image=@photo.jpg {address}/classify"
    return GatewayServer(config, stop, admission, supervisor, on_ready=lambda: typer.echo(ready))


class GatewayServer(uvicorn.Server):
    """uvicorn, with one meaning for both signals, and a word when it listens and when it stops."""

    def __init__(
        self,
        config: uvicorn.Config,
        stop: StopSignal,
        admission: Admission,
        supervisor: Supervisor | None,
        *,
        on_ready: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._stop = stop
        self._admission = admission
        self._supervisor = supervisor
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    async def on_tick(self, counter: int) -> bool:
        has_failed = self._supervisor is not None and self._supervisor.failure is not None
        return await super().on_tick(counter) or has_failed

    def handle_exit(self, sig: int, frame: object) -> None:
        """Uvicorn ends on a second SIGINT only, and raises the signals again when it is done."""
        if self.should_exit:
            os._exit(128 + sig)  # the kernel kills Triton (with_parent.py); the next start removes its folder
        self.should_exit = True
        self._stop.note()
        self._admission.stop()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logger.info("stopping; finishing the requests in progress")
        asyncio.get_running_loop().call_later(LATE_REQUESTS_S, self._admission.close)
        await super().shutdown(sockets)


def choose_default(wanted: str | None, models: dict[str, ServedModel]) -> str:
    if wanted is None:
        return next(iter(models))
    if wanted not in models:
        raise ServingError(
            f"{named('--default-model')} is {wanted}, which is not served; choose from: {', '.join(models)}"
        )
    return wanted


def serve_metrics(metrics: Metrics, host: str, port: int) -> None:
    """On a port of their own, in a thread that ends with the process."""
    try:
        start_http_server(port, addr=host, registry=metrics.registry)
    except OSError as error:
        raise ServingError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another with {named('--metrics-port')}"
        ) from error


def read_access(settings: ServeSettings) -> Access:
    keys = load_api_keys(settings.api_keys_file, settings.api_keys.text if settings.api_keys else None)
    if keys is None and settings.rate_limit is not None:
        raise ServingError(
            f"{named('--rate-limit')} is per API key, and there are none; set {named('--api-keys-file')}, or drop it"
        )
    return Access(keys=keys, rate_limit=settings.rate_limit, cors_origins=settings.origins)


def reserve_port(host: str, port: int, admits_strangers: bool) -> socket.socket:
    """A bound socket that does not listen yet: nobody else gets the port, and nobody connects before we are ready."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        if not admits_strangers and not ipaddress.ip_address(address[0]).is_loopback:
            raise ServingError(
                f"{named('--host')} is {host}, which accepts other machines, and there are no API keys: give some with "
                f"{named('--api-keys-file')}, or add {named('--insecure')} where something else keeps strangers out"
            )
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ServingError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another with {named('--port')} or "
            f"{named('--host')}"
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
