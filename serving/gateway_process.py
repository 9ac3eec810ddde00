"""One of several gateways, started by serving/supervisor.py: `python -m serving.gateway_process`.

It reads its task from standard input, and learns from Triton which models there are, as with an external Triton.
"""

import os
import pickle
import signal
import socket
import sys

from deit.log import configure_logging
from serving.gateway.connection import addresses_of
from serving.gateway.server import GatewayServer
from serving.launcher import (
    StopSignal,
    collect_less_garbage,
    gateway_server,
    loaded_models,
    on_hangup,
    read_access,
)
from serving.supervisor import GatewayTask


def main() -> None:
    task = pickle.load(sys.stdin.buffer)
    assert isinstance(task, GatewayTask)
    settings = task.settings
    configure_logging(settings.log.format)
    stop = StopSignal()
    access = read_access(settings)
    listeners = [socket.socket(fileno=descriptor) for descriptor in task.listeners]
    assert settings.triton_url is not None
    urls = addresses_of(settings.triton_url)
    discovered = loaded_models(urls, None, stop, timeout_s=settings.triton.start_timeout_s)
    server = gateway_server(
        settings, urls, discovered, access, stop, None, listeners[0], on_ready=lambda: os.write(task.ready, b"1")
    )

    def drain_once(number: int, frame: object) -> None:
        """Ignore a second SIGTERM: one may come from the supervisor and one from a signal to the process group."""
        if not server.should_exit:
            GatewayServer.handle_exit(server, number, frame)

    server.handle_exit = drain_once  # type: ignore[method-assign,assignment]
    signal.signal(signal.SIGHUP, on_hangup(settings, access.keys) or server.handle_exit)
    collect_less_garbage()
    server.run(listeners)


if __name__ == "__main__":
    main()
