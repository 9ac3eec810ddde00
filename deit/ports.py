"""Ports of this machine that a server started next can listen on."""

import itertools
import random
import socket

LOOPBACK = "127.0.0.1"

CANDIDATES = range(10_000, 32_768)
"""Linux takes the ports of outgoing connections from 32768 on: one that is free there may be gone a moment later."""

DRAWN = 1000
"""How many candidates are looked at, at most."""


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now.

    They are drawn at random, so that servers that start at the same time do not choose the same.

    Raises:
        OSError: there are not enough.
    """
    drawn = random.Random().sample(CANDIDATES, DRAWN)  # its own seed: other processes may share that of `random`
    free = list(itertools.islice(filter(is_free, drawn), count))
    if len(free) < count:
        raise OSError(f"{count} free ports of {LOOPBACK} are needed, and of {DRAWN} only {len(free)} are free")
    return free


def is_free(port: int) -> bool:
    """Whether a server can listen on this port of 127.0.0.1 now."""
    try:
        bind(port)
    except OSError:
        return False
    return True


def bind(port: int) -> None:
    """Bind to this port of 127.0.0.1 for a moment. Raises OSError."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((LOOPBACK, port))
