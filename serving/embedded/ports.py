"""Ports of this machine that the embedded Triton can listen on."""

import logging
from dataclasses import fields, replace

from deit.errors import ServingError
from deit.options import named
from deit.ports import LOOPBACK, bind, free_ports, is_free
from serving.settings.triton import TritonPorts

logger = logging.getLogger(__name__)


def with_free_ports(ports: TritonPorts, *, avoids_taken: bool) -> TritonPorts:
    """The same with a free port for each that is 0.

    Args:
        avoids_taken: also replace default ports that another program has.
    """
    replaced = []
    for field in fields(TritonPorts):
        port = getattr(ports, field.name)
        if port == 0 or (avoids_taken and port is not None and port == field.default and not is_free(port)):
            replaced.append(field.name)
    chosen = dict(zip(replaced, free_ports(len(replaced)), strict=True))
    for name, port in chosen.items():
        logger.info("Triton uses port %d for %s", port, name)
    return replace(ports, **chosen)


def check_port_is_free(port: int, flag: str) -> None:
    """Raises ServingError when another process listens there."""
    try:
        bind(port)
    except OSError as error:
        raise ServingError(
            f"port {port} on {LOOPBACK} cannot be used by Triton ({error.strerror}); choose another with {named(flag)}"
        ) from error
