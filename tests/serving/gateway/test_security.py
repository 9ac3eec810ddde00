"""Hostile connections by raw sockets, and keys, against a real `deit serve`."""

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.conftest import encoded, photograph
from tests.serving.conftest import running
from tests.serving.raw_http import connection, exchange, post, read_all, read_answer, receive, status

KEY, OTHER_KEY = "key-of-the-first-user-0123456789", "key-of-the-other-user-0123456789"
ORIGIN = "https://app.example.org"


@pytest.fixture(scope="module")
def guarded(model_repository):
    """A server that asks for keys."""
    with running(
        "--model-repository",
        model_repository,
        f"--cors-origins={ORIGIN}",
        "--request-timeout-s=60",
        "--max-wait-s=60",
        environment={"DEIT_API_KEYS": f"{KEY},{OTHER_KEY}"},
    ) as process:
        yield process.wait_until_ready()


def test_a_client_without_key_that_declares_much_and_stalls_is_refused_at_once(guarded):
    with connection(guarded.url) as connected:
        connected.sendall(post(b"Content-Type: image/jpeg", b"Content-Length: 10000000"))
        answer = read_answer(connected)
    assert status(answer) == 401
    assert b"www-authenticate: Bearer" in answer
    assert b"/problems/unauthorized" in answer


def test_an_answer_arrives_in_one_piece(server):
    """Each piece would wake the client once more. Sent as two, one of twenty would be read apart."""
    with connection(server.url) as connected:
        for _ in range(20):
            connected.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            assert receive(connected).endswith(b'{"status":"alive"}')


HEALTH = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
STALLING = {
    "silent": b"",
    "in the header": b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-Slow: ",
    "in the body": post(b"Content-Type: image/jpeg", b"Content-Length: 1000", body=b"\xff\xd8"),
    "after three requests in one packet": HEALTH + HEALTH.replace(b"healthz", b"nope") + HEALTH,
}


@pytest.fixture(scope="module")
def stalled(server):
    """All that the server sent to clients that fell silent, until it closed: all at once, since each takes seconds."""

    def after_a_good_request():
        with connection(server.url) as connected:
            connected.sendall(HEALTH)
            answer = read_answer(connected)
            connected.sendall(STALLING["in the header"])
            return answer + read_all(connected)

    with ThreadPoolExecutor() as pool:
        later = pool.submit(after_a_good_request)
        answers = {where: pool.submit(exchange, server.url, sent) for where, sent in STALLING.items()}
        answers["in the header, after a good request"] = later
        return {where: answer.result() for where, answer in answers.items()}


@pytest.mark.parametrize(
    ("where", "statuses", "problem"),
    [
        ("silent", [], b""),
        ("in the header", [408], b"/problems/header-timeout"),
        ("in the header, after a good request", [200, 408], b"/problems/header-timeout"),
        ("in the body", [408], b"/problems/body-timeout"),
        ("after three requests in one packet", [200, 404, 200], b""),
    ],
)
def test_a_client_that_stalls_is_answered_in_order_and_its_connection_ends(stalled, where, statuses, problem):
    assert [int(part[:3]) for part in stalled[where].split(b"HTTP/1.1 ")[1:]] == statuses
    assert problem in stalled[where]


def test_a_chunked_body_without_end_is_413(server):
    request = post(b"Content-Type: image/jpeg", b"Transfer-Encoding: chunked")
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    with connection(server.url) as connected:
        connected.sendall(request)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(100):  # 6.5 MB, and the limit of this server is 2
                connected.sendall(chunk)
        assert status(read_answer(connected)) == 413


SMUGGLING = {
    "both lengths": post(b"Content-Length: 4", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "both lengths, other order": post(b"Transfer-Encoding: chunked", b"Content-Length: 4", body=b"0\r\n\r\n"),
    "two lengths": post(b"Content-Length: 4", b"Content-Length: 5", body=b"abcde"),
    "two equal lengths": post(b"Content-Length: 4", b"Content-Length: 4", body=b"abcd"),
    "a length list": post(b"Content-Length: 4, 4", body=b"abcd"),
    "a signed length": post(b"Content-Length: +4", body=b"abcd"),
    "a negative length": post(b"Content-Length: -4", body=b"abcd"),
    "a length in hexadecimal": post(b"Content-Length: 0x4", body=b"abcd"),
    "an unknown coding": post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"),
    "chunked twice": post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "chunked, not last": post(b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n"),
    "a space before the colon": post(b"Content-Length : 4", body=b"abcd"),
    "a folded line": post(b"X-A: b", b" c", b"Content-Length: 4", body=b"abcd"),
    "a zero byte in a value": post(b"X-A: b\0c", b"Content-Length: 4", body=b"abcd"),
    "a bad chunk": post(b"Transfer-Encoding: chunked", body=b"zz\r\nabcd\r\n"),
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "chunked in HTTP/1.0": b"POST /classify HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "no HTTP at all": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("request_bytes", SMUGGLING.values(), ids=SMUGGLING.keys())
def test_what_can_be_read_in_two_ways_is_400_and_the_connection_ends(server, request_bytes):
    answer = exchange(server.url, request_bytes + b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
    assert status(answer) == 400, answer
    assert b"HTTP/1.1 200" not in answer, "what follows is not a request"
    assert b"application/problem+json" in answer
    assert b"/problems/malformed-request" in answer


def test_20000_header_lines_are_431(server):
    request = b"GET /healthz HTTP/1.1\r\nHost: a\r\n" + b"a: b\r\n" * 20_000 + b"\r\n"
    assert status(exchange(server.url, request)) == 431


def test_one_header_line_without_end_is_431(server):
    request = b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-A: " + b"x" * 10**6
    assert status(exchange(server.url, request)) == 431


def test_a_long_url_is_414(server):
    request = b"GET /healthz?" + b"x" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n"
    assert status(exchange(server.url, request)) == 414


def test_after_an_early_answer_a_complete_body_keeps_the_connection(server):
    big = post(b"Content-Type: image/jpeg", b"Content-Length: 3000000", body=b"x" * 3_000_000)
    with connection(server.url) as connected:
        connected.sendall(big)
        assert status(read_answer(connected)) == 413
        connected.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        assert status(read_answer(connected)) == 200


@pytest.mark.parametrize("last", [b"Connection: close", b"Connection: keep-alive"])
def test_an_early_answer_reaches_a_client_that_is_still_sending(server, last):
    """Closing at once would reset the connection and take the answer along."""
    half = b"x" * 4_000_000  # all within the five seconds for which the server reads on
    request = post(b"Content-Type: image/jpeg", b"Content-Length: 8000000", last, body=half)
    with connection(server.url) as connected:
        connected.sendall(request)
        assert status(read_answer(connected)) == 413
        connected.sendall(half)
        if last == b"Connection: close":
            assert connected.recv(1) == b""


def test_a_client_that_asked_to_close_and_never_ends_its_body_is_cut_off(server):
    with connection(server.url) as connected:
        connected.sendall(post(b"Content-Type: image/jpeg", b"Content-Length: 30000000", b"Connection: close"))
        assert status(read_answer(connected)) == 413
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while True:
                connected.sendall(b"x" * 1000)
                time.sleep(0.01)


def test_the_server_answers_on_after_all_of_this(server):
    assert server.post("/classify", content=encoded(photograph(96, 64))).status_code == 200


@pytest.mark.parametrize(
    "headers", [{"Authorization": f"Bearer {KEY}"}, {"Authorization": f"bearer  {KEY}"}, {"X-API-Key": OTHER_KEY}]
)
def test_every_live_key_opens(guarded, headers):
    content = encoded(photograph(96, 64))
    answer = guarded.post("/classify", content=content, headers=headers)
    assert answer.status_code == 200
    assert guarded.get("/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": KEY}, {"Authorization": "Bearer"}, {"Authorization": f"Basic {KEY}"}]
)
def test_without_a_live_key_everything_that_tells_something_is_401(guarded, headers):
    for path in ("/classify", "/models", "/models/tiny", "/nope"):
        for method in ("GET", "POST"):
            assert guarded.ask(method, path, headers=headers).status_code == 401


def test_health_and_page_are_open(guarded):
    for path in ("/", "/healthz", "/readyz", "/static/app.js", "/problems/unauthorized", "/openapi.json"):
        assert guarded.get(path).status_code == 200


def test_a_key_is_in_no_log_and_in_no_environment_of_triton(guarded):
    guarded.get("/models", headers={"X-API-Key": KEY})
    guarded.get(f"/models?key={OTHER_KEY}")
    assert KEY not in guarded.output
    assert OTHER_KEY not in guarded.output
    for pid in guarded.children():
        assert KEY.encode() not in Path(f"/proc/{pid}/environ").read_bytes()


def test_no_key_stays_in_the_environment_of_the_gateway(guarded):
    environment = Path(f"/proc/{guarded.process.pid}/environ").read_bytes()
    assert KEY.encode() not in environment
    assert OTHER_KEY.encode() not in environment


def test_each_wrong_key_costs_its_connection_half_a_second(guarded):
    with httpx.Client(base_url=guarded.url, timeout=60) as client:
        started_s = time.monotonic()
        for key in ("wrong-key-number-1-0123456789", "wrong-key-number-2-0123456789", "é"):
            assert client.get("/models", headers={"X-API-Key": key.encode()}).status_code == 401
        assert time.monotonic() - started_s >= 1.5


def test_only_the_listed_page_may_ask_from_a_browser_and_errors_say_so_too(guarded):
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    allowed = guarded.ask("OPTIONS", "/classify", headers={"Origin": ORIGIN, **asks})
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, ORIGIN)
    refused = guarded.ask("OPTIONS", "/classify", headers={"Origin": "https://evil.example", **asks})
    assert "access-control-allow-origin" not in refused.headers
    error = guarded.get("/models", headers={"Origin": ORIGIN})
    assert (error.status_code, error.headers["access-control-allow-origin"]) == (401, ORIGIN)


def test_without_a_list_no_page_elsewhere_may_ask(server):
    answer = server.get("/models", headers={"Origin": ORIGIN})
    assert "access-control-allow-origin" not in answer.headers


def test_every_answer_is_data_that_is_not_run_framed_or_kept(server):
    for path in ("/models", "/nope", "/healthz"):
        headers = server.get(path).headers
        assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


def test_a_key_may_not_ask_more_often_than_its_limit(deit_serve, model_repository):
    server = deit_serve(
        *("--model-repository", model_repository, "--rate-limit=0.05"),
        environment={"DEIT_API_KEYS": f"{KEY},{OTHER_KEY}"},
    ).wait_until_ready()
    content = encoded(photograph(96, 64))

    def ask(key):
        return server.post("/classify", content=content, headers={"X-API-Key": key})

    assert ask(KEY).status_code == 200
    refused = ask(KEY)
    assert (refused.status_code, refused.json()["type"]) == (429, "/problems/rate-limited")
    assert 1 <= int(refused.headers["retry-after"]) <= 20
    assert ask(OTHER_KEY).status_code == 200, "another key has its own limit"
