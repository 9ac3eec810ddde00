"""Chooses the connection to close for a new one when the limit is reached.

A connection whose request is being answered is never closed. Idle connections are closed first. One whose request is
still arriving is closed only if its client has more connections than the client of the new one, so a client cannot keep
others out by holding connections open, nor harm others behind the same proxy. A client is an IPv4 address or an IPv6
/64 network, which is what one machine gets.
"""

import enum
import socket
from collections import Counter
from collections.abc import Iterable
from typing import Protocol, TypeVar

IPV6_NETWORK_BYTES = 8
IPV4_MAPPED = bytes(10) + b"\xff\xff"


class Stage(enum.Enum):
    """State of a connection: waiting for a request; part of one has arrived; its response is computed or written."""

    IDLE = enum.auto()
    ARRIVING = enum.auto()
    ANSWERING = enum.auto()


class Held(Protocol):
    """A connection. `since_s` is when it began to wait."""

    address: str
    since_s: float

    @property
    def stage(self) -> Stage: ...


Connection = TypeVar("Connection", bound=Held)


def dispensable(others: Iterable[Connection], newcomer: Held) -> Connection | None:
    """The one to close: of the client with the most, the one that has waited longest. None to refuse the new one."""
    by_client = [(client_of(other.address), other) for other in others]
    held = Counter(client for client, _ in by_client)
    fair_share = held[client_of(newcomer.address)] + 1
    candidates = [
        (held[client], other.stage is Stage.IDLE, -other.since_s, other)
        for client, other in by_client
        if other.stage is Stage.IDLE or (other.stage is Stage.ARRIVING and held[client] > fair_share)
    ]
    return max(candidates, key=lambda candidate: candidate[:3])[3] if candidates else None


def client_of(address: str) -> bytes:
    if ":" not in address:
        return address.encode()
    packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0])
    return packed if packed.startswith(IPV4_MAPPED) else packed[:IPV6_NETWORK_BYTES]
