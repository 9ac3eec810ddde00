"""Which ports Triton gets."""

import contextlib
import socket

from serving.embedded.ports import with_free_ports
from serving.settings.triton import TritonPorts


def test_a_port_that_nobody_chose_gives_way_to_another_server():
    default = TritonPorts()
    with socket.create_server(("127.0.0.1", 0)) as other, contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # if another program has it, that is just as good
            stack.enter_context(socket.create_server(("127.0.0.1", default.grpc)))
        taken = other.getsockname()[1]
        given = TritonPorts(metrics=taken)
        chosen = with_free_ports(given, avoids_taken=True)
        assert chosen.grpc not in (0, default.grpc, taken)
        assert chosen.metrics == taken, "what was asked for is not exchanged without a word"
        assert with_free_ports(given, avoids_taken=False) == given


def test_0_is_a_free_port():
    chosen = with_free_ports(TritonPorts(grpc=0, metrics=0, http=0), avoids_taken=False)
    assert len({chosen.grpc, chosen.metrics, chosen.http} - {0}) == 3
