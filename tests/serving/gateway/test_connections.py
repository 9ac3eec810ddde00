"""What one connection may cost, whatever state it is in, and where one request ends and the next begins."""

import contextlib
import json
import os
import signal
from pathlib import Path

import pytest

from tests.conftest import encoded, photograph
from tests.serving.raw_http import connection, exchange, post, read_all, status

GET = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
PICTURE = encoded(photograph(96, 64))
MEBIBYTE = 2**20

# One packet may be in the parser whole, some of it as objects of Python.
FEW_BYTES = 8 * MEBIBYTE


@contextlib.contextmanager
def little_memory(server):
    """The gateway's memory grows by little while the block runs."""
    memory = Path(f"/proc/{server.process.pid}/status")

    def read(field):
        return 1024 * int(memory.read_text().partition(f"{field}:")[2].split()[0])

    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")  # the peak starts anew
    before = read("VmRSS")
    yield
    assert read("VmHWM") - before < FEW_BYTES


def send(connected, data):
    """As much of it as the server takes."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connected.sendall(data)


def statuses(answers):
    return [int(part[:3]) for part in answers.split(b"HTTP/1.1 ")[1:]]


CHUNKED = b"Transfer-Encoding: chunked"
UNFINISHED = {
    "a header": b"GET /healthz HTTP/1.1\r\nX: ",
    "the name in a header": b"GET /healthz HTTP/1.1\r\n",
    "a URL": b"GET /healthz?",
    "a trailer of what is answered already": b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + CHUNKED + b"\r\n\r\n0\r\nX: ",
    "a trailer of what waits for it": post(CHUNKED, body=b"0\r\nX: "),
    "the name in a trailer": post(CHUNKED, body=b"0\r\n"),
    "an extension of a chunk": post(CHUNKED, body=b"1;"),
    "a second header": GET + b"GET /healthz HTTP/1.1\r\nX: ",
}


@pytest.mark.parametrize("beginning", UNFINISHED.values(), ids=UNFINISHED.keys())
def test_what_never_ends_is_not_kept(server, beginning):
    with little_memory(server), connection(server.url) as connected:
        send(connected, beginning + b"a" * 48 * MEBIBYTE)
        answers = read_all(connected)
    assert statuses(answers)[-1:] in ([200], [414], [431])


def test_many_trailers_are_431(server):
    request = post(CHUNKED, body=b"0\r\n" + b"a: b\r\n" * 20_000)
    assert status(exchange(server.url, request)) == 431


@pytest.fixture
def busy(server):
    """The server while its decoders stand still, so that an answer waits."""
    decoders = server.decoders()
    for pid in decoders:
        os.kill(pid, signal.SIGSTOP)

    def go_on():
        for pid in decoders:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    yield go_on
    go_on()


def test_a_header_without_end_behind_a_request_in_progress_is_not_kept(server, busy):
    first = post(b"Content-Type: image/jpeg", b"Content-Length: %d" % len(PICTURE), body=PICTURE)
    with little_memory(server), connection(server.url) as connected:
        killed = server.output.count("; killing it")
        send(connected, first + b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 2 * FEW_BYTES)
        busy()
        answers = read_all(connected)
        is_late = server.output.count("; killing it") > killed  # decoders that stood still were found and killed
        assert statuses(answers) == [503 if is_late else 200], "the good request has its answer"


def test_requests_without_number_that_nobody_reads_take_little_memory(server):
    with little_memory(server), connection(server.url) as connected:
        connected.settimeout(3)
        with contextlib.suppress(TimeoutError):
            send(connected, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 200_000)
    assert server.get("/healthz").status_code == 200


def test_a_connection_with_too_many_requests_ahead_ends_after_answers_to_the_first(server):
    answers = exchange(server.url, GET * 100)
    assert statuses(answers) == [200] * 17
    *others, last = answers.split(b"HTTP/1.1 ")[1:]
    assert b"connection: close" in last
    assert not any(b"connection: close" in other for other in others)


def test_a_client_that_reads_may_send_ahead_for_ever(server):
    with connection(server.url) as connected:
        for _ in range(50):
            connected.sendall(GET * 10)
            answers = b""
            while answers.count(b"alive") < 10:
                answers += connected.recv(65536)
            assert statuses(answers) == [200] * 10


def test_a_bad_request_behind_a_good_one_ends_the_connection_after_the_answer(server):
    with connection(server.url) as connected:
        send(connected, GET + b"nonsense\r\n\r\n" + GET)
        assert statuses(read_all(connected))[:1] == [200]
        assert connected.recv(1) == b""


OFFERS = {
    "h2c": (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"),
    "websocket": (b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13"),
    "another": (b"Upgrade: TLS/1.0", b"Connection: keep-alive, upgrade"),
}


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS.keys())
@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("is_apart", [False, True], ids=["one piece", "body apart"])
def test_an_offer_to_upgrade_is_ignored_and_the_body_is_a_body(server, offer, is_chunked, is_apart):
    if is_chunked:
        header = post(b"Content-Type: image/jpeg", CHUNKED, *offer)
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(PICTURE), PICTURE)
    else:
        header, body = post(b"Content-Type: image/jpeg", b"Content-Length: %d" % len(PICTURE), *offer), PICTURE
    with connection(server.url) as connected:
        if is_apart:
            connected.sendall(header)
            connected.sendall(body + GET)
        else:
            connected.sendall(header + body + GET)
        answers = b""
        while b"alive" not in answers:
            part = connected.recv(65536)
            assert part, answers
            answers += part
    assert statuses(answers) == [200, 200]
    assert b"predictions" in answers


def test_a_request_in_the_body_of_an_offer_to_upgrade_is_not_answered(server):
    """It belongs to the body; a proxy in front has checked no key and no path of it."""
    hidden = b"GET /models HTTP/1.1\r\nHost: a\r\n\r\n"
    header = post(b"Content-Length: %d" % len(hidden), b"Connection: close, Upgrade", b"Upgrade: h2c")
    with connection(server.url) as connected:
        connected.sendall(header)
        connected.sendall(hidden)
        assert statuses(read_all(connected)) == [415]


def test_a_tunnel_is_405(server):
    assert status(exchange(server.url, b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n" + GET)) == 405


def test_a_trailer_does_not_pass_for_a_header(server):
    body = b"%x\r\n%s\r\n0\r\nContent-Encoding: gzip\r\nX-Request-ID: smuggled\r\n\r\n" % (len(PICTURE), PICTURE)
    answers = exchange(server.url, post(b"Content-Type: image/jpeg", b"Connection: close", CHUNKED, body=body))
    assert statuses(answers) == [200]
    assert b"smuggled" not in answers


def test_a_client_of_http_1_0_gets_results_without_chunks(server):
    """As nginx asks by default, and `curl --http1.0`."""
    end = b"\r\n--x--\r\n"
    part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n' + PICTURE + b"\r\n"
    body = part * 2 + end
    header = [
        *(b"POST /classify HTTP/1.0", b"Connection: keep-alive", b"Accept: application/x-ndjson"),
        *(b"Content-Type: multipart/form-data; boundary=x", b"Content-Length: %d" % len(body), b"", b""),
    ]
    head, _, lines = exchange(server.url, b"\r\n".join(header) + body).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"transfer-encoding" not in head.lower()
    assert sorted(json.loads(line)["index"] for line in lines.splitlines()) == [0, 1]
