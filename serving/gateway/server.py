"""The gateway's HTTP server: its ports and its reaction to signals."""

import asyncio
import ipaddress
import logging
import math
import os
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from deit.errors import ServingError
from deit.options import named
from serving.gateway.admission import Admission
from serving.gateway.protocol import GuardedProtocol
from serving.settings.serve import ServeSettings

logger = logging.getLogger(__name__)

# Requests that were sent before their client could know that the server stops are answered.
LATE_REQUESTS_S = 1.0


class GatewayServer(uvicorn.Server):
    """uvicorn, with the same response to both signals, and log lines when it listens and when it stops.

    Args:
        on_stop: called when a signal asks the server to stop.
        has_failed: polled; the server stops when it returns True.
    """

    def __init__(
        self,
        settings: ServeSettings,
        app: FastAPI,
        admission: Admission,
        *,
        on_ready: Callable[[], object],
        on_stop: Callable[[], None],
        has_failed: Callable[[], bool],
    ) -> None:
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
            timeout_keep_alive=settings.keep_alive_s,  # type: ignore[arg-type]  # asyncio takes fractions too
            root_path=settings.root_path,
            timeout_graceful_shutdown=math.ceil(settings.limits.request_timeout_s) + 1,
        )
        super().__init__(config)
        self._admission = admission
        self._on_ready = on_ready
        self._on_stop = on_stop
        self._has_failed = has_failed

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._has_failed()

    def handle_exit(self, sig: int, frame: object) -> None:
        """Uvicorn ends on a second SIGINT only, and raises the signals again when it is done."""
        if self.should_exit:
            os._exit(128 + sig)  # the kernel kills Triton (with_parent.py); the next start removes its folder
        self.should_exit = True
        self._on_stop()
        self._admission.stop()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        logger.info("stopping; finishing the requests in progress")
        asyncio.get_running_loop().call_later(LATE_REQUESTS_S, self._admission.close)
        await super().shutdown(sockets)


def reserve_port(
    host: str, port: int, *, admits_strangers: bool, flag: str = "--port", shared: bool = False
) -> socket.socket:
    """A bound socket that does not listen yet: the port is ours, but clients cannot connect before we are ready.

    Args:
        shared: other sockets of this user may bind the port too, and get a share of the connections.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        if not admits_strangers and not ipaddress.ip_address(address[0]).is_loopback:
            raise ServingError(
                f"{named('--host')} is {host}, which accepts other machines, but no API keys are set: give some with "
                f"{named('--api-keys-file')}, or add {named('--insecure')} where something else keeps strangers out"
            )
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
    except OSError as error:
        raise ServingError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another with {named(flag)} or "
            f"{named('--host')}"
        ) from error
    return listener


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{bracketed(host)}:{port}"


def bracketed(host: str) -> str:
    """An address as written before a port (RFC 3986 section 3.2.2)."""
    return f"[{host}]" if ":" in host else host
