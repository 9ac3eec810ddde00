"""The address of a request's client: the peer's, or the one that trusted proxies give in X-Forwarded-For."""

import ipaddress
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import Scope

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

HEADER = "x-forwarded-for"

# Callers can send this header too; their entries come before those that proxies add.
MOST_HOPS = 8


def networks(text: str) -> tuple[Network, ...]:
    """Addresses and networks such as 10.0.0.0/8, separated by commas. Raises ValueError for what is neither."""
    return tuple(ipaddress.ip_network(each.strip()) for each in text.split(",") if each.strip())


def client_address(scope: Scope, trusted: Sequence[Network]) -> str:
    """The nearest address that is not a trusted proxy's; the farthest if all are, "" if the peer has no address."""
    if scope.get("client") is None:
        return ""
    address = str(scope["client"][0])
    if trusted and is_trusted(address, trusted):
        for hop in reversed(Headers(scope=scope).get(HEADER, "").split(",")[-MOST_HOPS:]):
            try:
                address = str(ipaddress.ip_address(hop.strip()))
            except ValueError:  # nothing before it can be believed
                break
            if not is_trusted(address, trusted):
                break
    return address


def is_trusted(address: str, trusted: Sequence[Network]) -> bool:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # a Unix socket
        return False
    return any(ip in network for network in trusted)
