"""More connections than may be open: who waits makes room, and nobody keeps others out."""

import contextlib
import socket
from dataclasses import dataclass

import pytest

from serving.gateway.crowd import Stage, client_of, dispensable
from serving.gateway.protocol import MAX_CONNECTIONS
from tests.conftest import encoded, photograph
from tests.serving.raw_http import post, read_answer, status

GET = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
PICTURE = encoded(photograph(96, 64))


@dataclass(frozen=True)
class Held:
    address: str
    since_s: float
    stage: Stage = Stage.IDLE


NEW = Held("10.0.0.1", 100)


def test_of_the_client_with_the_most_the_one_that_waited_longest_goes():
    crowd = [Held("10.0.0.2", since_s) for since_s in (5, 3, 4)]
    assert dispensable([Held("10.0.0.3", 1), *crowd, Held("10.0.0.4", 2)], NEW) == crowd[1]


def test_what_arrives_goes_only_for_a_client_with_less():
    crowd = [Held("10.0.0.2", since_s, Stage.ARRIVING) for since_s in range(3)]
    assert dispensable(crowd, NEW) == crowd[0]
    assert dispensable(crowd, Held("10.0.0.2", 100)) is None
    assert dispensable([*crowd, *[Held("10.0.0.1", 0, Stage.ANSWERING)] * 2], NEW) is None


def test_an_idle_one_of_the_same_client_goes_before_what_arrives():
    idle = Held("10.0.0.2", 9)
    assert dispensable([Held("10.0.0.2", 1, Stage.ARRIVING), idle, Held("10.0.0.2", 2, Stage.ARRIVING)], NEW) == idle


def test_what_is_answered_never_goes():
    assert dispensable([Held("10.0.0.2", 1, Stage.ANSWERING)] * 9, NEW) is None


def test_a_client_is_an_address_or_a_network_of_ipv6():
    assert client_of("2001:db8:0:1::1") == client_of("2001:db8:0:1:ffff::2") != client_of("2001:db8:0:2::1")
    assert client_of("::ffff:10.0.0.1") != client_of("::ffff:10.0.0.2")
    assert client_of("fe80::1%eth0") == client_of("fe80::2")
    assert client_of("10.0.0.1") != client_of("10.0.0.2")


@contextlib.contextmanager
def connections(server, count, address="127.0.0.1"):
    host, port = server.url.removeprefix("http://").split(":")
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection((host, int(port)), 60, (address, 0))) for _ in range(count)]


def ask(*connected):
    """The statuses. All requests are sent before any answer is read: who is silent for five seconds is cut off."""
    for each in connected:
        each.sendall(GET)
    return {status(read_answer(each)) for each in connected}


def test_connections_that_are_only_kept_keep_nobody_out(server):
    with connections(server, MAX_CONNECTIONS) as kept:
        assert ask(*kept) == {200}
        with connections(server, 20) as others:
            assert ask(*others) == {200}
        assert ask(kept[-1]) == {200}, "those that waited longest went"
        with pytest.raises((AssertionError, ConnectionResetError, BrokenPipeError)):
            ask(kept[0])


@pytest.mark.parametrize(
    "beginning", [b"GET /healthz HTTP/1.1\r\nX: ", post(b"Content-Length: 1000", body=b"\xff\xd8")]
)
def test_a_client_that_holds_all_connections_with_requests_that_never_end_keeps_only_itself_out(server, beginning):
    with connections(server, MAX_CONNECTIONS, "127.0.0.2") as crowd:
        for each in crowd:
            each.sendall(beginning)
        with connections(server, 20) as others:
            assert ask(*others) == {200}
        with connections(server, 1, "127.0.0.2") as (another,):
            assert ask(another) <= {200, 429}


def test_a_crowd_ends_no_request_that_is_being_answered(server):
    request = post(b"Content-Type: image/jpeg", b"Content-Length: %d" % len(PICTURE), body=PICTURE)
    with connections(server, 20) as working, connections(server, 3 * MAX_CONNECTIONS, "127.0.0.2"):
        for each in working:
            each.sendall(request)
        with connections(server, MAX_CONNECTIONS, "127.0.0.3"):
            assert {status(read_answer(each)) for each in working} == {200}
