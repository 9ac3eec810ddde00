"""How the owner of a running server sends it commands: one line over a Unix socket, answered by one line of JSON.

Not over HTTP: neither a caller who may classify nor a web page in a browser on this machine may change models. The
server's half is `serving/embedded/control.py`.
"""

import json
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

from deit.errors import ServingError


def control_socket(port: int) -> Path:
    """The socket of this user's server that listens on `port` over HTTP."""
    return Path(tempfile.gettempdir(), f"deit-control-{os.getuid()}", f"{port}.sock")


def command_server(port: int, command: str) -> dict[str, Any]:
    """Send a command to the server on this port, and return its answer.

    Raises:
        ServingError: no such server runs, it does not accept commands, or it refuses this one.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(control_socket(port)))
        except OSError as error:
            raise ServingError(
                f"no server of this user takes commands for port {port} ({error.strerror}); "
                "start it with `deit serve --allow-reload`, and name its --port"
            ) from error
        with connection.makefile("rw") as lines:
            lines.write(f"{command}\n")
            lines.flush()
            text = lines.readline()
    if not text:
        raise ServingError("the server ended before it answered; see its log")
    answer: dict[str, Any] = json.loads(text)
    if "error" in answer:
        raise ServingError(answer["error"])
    return answer
