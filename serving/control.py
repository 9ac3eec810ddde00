"""Commands for a running server, from the user who runs it: a Unix socket in a folder that nobody else may enter.

Not over HTTP: whoever may ask for answers need not be allowed to change what answers, and a page in a browser on this
machine must not be able to.
"""

import asyncio
import json
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from deit.errors import ServingError

Answer = dict[str, Any]


def control_socket(port: int) -> Path:
    """Of the server on this port of HTTP."""
    return Path(tempfile.gettempdir(), f"deit-control-{os.getuid()}", f"{port}.sock")


async def serve_control(port: int, answer: Callable[[str], Awaitable[Answer]]) -> None:
    """Answer commands until cancelled, each on a connection of its own.

    Raises:
        ServingError: the folder belongs to somebody else.
    """
    path = control_socket(port)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    status = path.parent.lstat()
    if path.parent.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise ServingError(f"{path.parent} is open to others; remove it, or set TMPDIR to a folder of your own")
    path.unlink(missing_ok=True)  # of a server that was killed: the port is ours now

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            command = (await reader.readline()).decode(errors="replace").strip()
            writer.write(json.dumps(await answer(command)).encode() + b"\n")
            await writer.drain()
        finally:
            writer.close()

    server = await asyncio.start_unix_server(converse, path)
    try:
        await asyncio.Future()
    finally:
        server.close()
        path.unlink(missing_ok=True)


def command_server(port: int, command: str) -> Answer:
    """What the server on this port answers to a command.

    Raises:
        ServingError: there is none, or it takes no commands, or it refuses this one.
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
        raise ServingError("the server ended before it answered; look into its log")
    answer: Answer = json.loads(text)
    if "error" in answer:
        raise ServingError(answer["error"])
    return answer
