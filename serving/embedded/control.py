"""The server's half of `deit/control.py`: commands on a Unix socket, in a folder that only its user can open."""

import asyncio
import contextlib
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from deit.control import control_socket
from deit.errors import ServingError

Reply = dict[str, Any]


def claim_control_socket(port: int) -> Path:
    """The path for the server that holds this port, in a folder of this user alone.

    Raises:
        ServingError: the folder belongs to another user, or is open to others.
    """
    path = control_socket(port)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    status = path.parent.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise ServingError(f"{path.parent} is open to others; remove it, or set TMPDIR to a folder of your own")
    remove_leftovers(path.parent)
    return path


def remove_leftovers(folder: Path) -> None:
    """Sockets of servers that were killed."""
    for path in folder.glob("*.sock"):
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            except FileNotFoundError:  # its server ended just now
                pass


@asynccontextmanager
async def control_server(path: Path, answer: Callable[[str], Awaitable[Reply]]) -> AsyncIterator[None]:
    """Answers commands while the block runs, each on a separate connection."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ValueError):  # it left early, or sent a line without end
            line = await reader.readline()
            if line.endswith(b"\n"):
                writer.write(json.dumps(await answer(line.decode(errors="replace").strip())).encode() + b"\n")
                await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(converse, path)
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)
