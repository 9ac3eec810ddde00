"""HTTP byte by byte, for what no client library sends."""

import contextlib
import re
import socket


@contextlib.contextmanager
def connection(url):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connected:
        yield connected


def read_all(connected):
    """Until the server closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connected.recv(65536):
            received += part
    return received


def exchange(url, request):
    """What the server answers until it closes."""
    with connection(url) as connected:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connected.sendall(request)
        return read_all(connected)


def status(answer):
    return int(answer.split(b" ", 2)[1]) if answer else None


def post(*lines, body=b""):
    return b"\r\n".join([b"POST /classify HTTP/1.1", b"Host: a", *lines, b"", b""]) + body


def read_answer(connected):
    """One whole answer, of a connection that may stay open."""
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += receive(connected)
    header, _, body = answer.partition(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", header)[1])
    while len(body) < length:
        body += receive(connected)
    return header + b"\r\n\r\n" + body


def receive(connected):
    part = connected.recv(65536)
    assert part, "the server closed the connection"
    return part
