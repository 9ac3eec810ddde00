"""Ports of this machine that the embedded Triton can listen on."""

import logging
import socket
from dataclasses import fields, replace

from deit.errors import ServingError
from deit.options import named
from serving.embedded.command_line import LOOPBACK
from serving.settings import TritonPorts

logger = logging.getLogger(__name__)


def with_free_ports(ports: TritonPorts, *, avoids_taken: bool) -> TritonPorts:
    """The same with a free port for each that is 0.

    Args:
        avoids_taken: also replace default ports that another program has.
    """
    chosen = ports
    for field in fields(TritonPorts):
        port = getattr(ports, field.name)
        if port == 0 or (avoids_taken and port is not None and port == field.default and not _is_free(port)):
            chosen = replace(chosen, **{field.name: _bind(0)})
            logger.info("Triton uses port %d for %s", getattr(chosen, field.name), field.name)
    return chosen


def check_port_is_free(port: int, flag: str) -> None:
    """Raises ServingError when another process listens there."""
    try:
        _bind(port)
    except OSError as error:
        raise ServingError(
            f"port {port} on {LOOPBACK} cannot be used by Triton ({error.strerror}); choose another with {named(flag)}"
        ) from error


def _is_free(port: int) -> bool:
    try:
        _bind(port)
    except OSError:
        return False
    return True


def _bind(port: int) -> int:
    """The port, or a free one for 0, after binding to it for a moment. Raises OSError."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((LOOPBACK, port))
        number: int = probe.getsockname()[1]
        return number
