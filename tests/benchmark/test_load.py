"""The load client against a real server of this process: what it sends, counts and times."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from benchmark.load import Load, closed_loop, each_answered, each_once, open_loop, requests_of
from deit.errors import BenchmarkError
from tests.conftest import encoded, photograph

Handler = Callable[[bytes, bytes], Awaitable[bytes]]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nServer-Timing: model;dur=1.5\r\n\r\n{}"


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    return [
        encoded(photograph(96, 64, seed), image_format) for seed, image_format in enumerate(("JPEG", "PNG", "WEBP"))
    ]


@contextlib.asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[str]:
    """The address of a server that answers each request with handler(head, body), one after the other a connection."""

    closed: list[asyncio.Event] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        closed.append(asyncio.Event())
        mine = closed[-1]
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                answer = await handler(head, await reader.readexactly(length))
                if not answer:
                    break
                writer.write(answer)
        writer.close()
        mine.set()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        yield f"http://{host}:{port}/classify?top_k=1"
    finally:
        server.close()
        for each in closed:
            await each.wait()
        await asyncio.sleep(0)  # a transport closes its socket in the loop's next turn


def measured(handler: Handler, load: Callable[[str], Awaitable[Load]]) -> Load:
    async def run() -> Load:
        async with served(handler) as url:
            return await load(url)

    return asyncio.run(run())


def test_no_garbage_is_collected_between_the_first_request_and_the_last_answer(images):
    collections = []

    async def remember(head: bytes, body: bytes) -> bytes:
        _ = [[] for _ in range(5000)]  # enough for Python to collect, after some hundred of them
        collections.append(sum(generation["collections"] for generation in gc.get_stats()))
        return OK

    load = measured(remember, lambda url: closed_loop(url, requests_of(url, images), concurrency=2, duration_s=0.2))
    assert load.answers
    assert len(set(collections)) == 1
    assert gc.isenabled()


@pytest.mark.parametrize("as_form", [True, False])
def test_each_image_arrives_whole_and_the_answers_keep_the_order(images, as_form):
    received = []

    async def remember(head: bytes, body: bytes) -> bytes:
        received.append((head, body))
        return OK

    load = measured(remember, lambda url: each_once(url, requests_of(url, images, as_form=as_form), concurrency=2))
    assert [answer.image for answer in load.answers] == [0, 1, 2]
    assert all(answer.body == b"{}" and answer.headers["server-timing"] == "model;dur=1.5" for answer in load.answers)
    for head, _ in received:
        assert head.startswith(b"POST /classify?top_k=1 HTTP/1.1\r\nHost: 127.0.0.1:")
        assert b"authorization" not in head.lower()
    for image, media_type in zip(images, ("image/jpeg", "image/png", "image/webp"), strict=True):
        if as_form:
            assert any(
                image in body and media_type.encode() in body and b'name="image"' in body for _, body in received
            )
        else:
            assert any(image == body and media_type.encode() in head for head, body in received)


def test_a_closed_loop_keeps_its_concurrency_and_asks_a_slow_server_less(images):
    in_flight = most = 0

    async def slow(head: bytes, body: bytes) -> bytes:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0.05)
        in_flight -= 1
        return OK

    load = measured(
        slow, lambda url: closed_loop(url, requests_of(url, images), concurrency=4, duration_s=0.5, warm_up_s=0.1)
    )
    assert most == 4
    assert load.latency_ms(1) >= 50
    assert 0 < load.rate_per_s <= 4 / 0.05
    assert load.statuses == {200: len(load.answers)}


def test_who_is_refused_in_a_closed_loop_comes_again_when_the_server_says(images):
    asked = 0

    async def refuses_first(head: bytes, body: bytes) -> bytes:
        nonlocal asked
        asked += 1
        if asked > 1:
            return OK
        return b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\nRetry-After: 0.2\r\n\r\n"

    load = measured(refuses_first, lambda url: closed_loop(url, requests_of(url, images), concurrency=1, duration_s=1))
    refusal, *others = load.answers
    assert refusal.status == 429
    assert others
    assert min(answer.sent_s for answer in others) - refusal.done_s >= 0.2


def test_a_latency_of_the_open_loop_counts_from_when_the_request_was_due(images):
    """One connection and 20 ms an answer: 100 requests due in half a second wait for each other, up to 1.5 s."""

    async def slow(head: bytes, body: bytes) -> bytes:
        await asyncio.sleep(0.02)
        return OK

    load = measured(
        slow,
        lambda url: open_loop(url, requests_of(url, images), rate_per_s=200, duration_s=0.5, max_connections=1),
    )
    assert 60 < len(load.answers) < 140  # Poisson of 100: five standard deviations are 50
    assert all(answer.done_s - answer.sent_s >= 0.02 for answer in load.answers)
    assert load.latency_ms(100) >= 1000 * (len(load.answers) * 0.02 - 0.5)
    assert max(answer.due_s for answer in load.answers) < 0.5


def test_refusals_and_broken_connections_are_counted_and_the_load_goes_on(images):
    turn = 0

    async def moody(head: bytes, body: bytes) -> bytes:
        nonlocal turn
        turn += 1
        return (OK, b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", b"")[turn % 3]

    load = measured(moody, lambda url: each_once(url, requests_of(url, images) * 4, concurrency=1))
    assert load.statuses == {200: 4, 429: 4, "ConnectionResetError": 4}


@pytest.mark.parametrize("patience", ["enough", "none"])
def test_what_an_overloaded_server_refuses_is_sent_again(images, patience):
    turn = 0

    async def full(head: bytes, body: bytes) -> bytes:
        nonlocal turn
        turn += 1
        refuses = patience == "none" or turn <= 5
        return b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n" if refuses else OK

    async def run():
        async with served(full) as url:
            return await each_answered(url, requests_of(url, images), concurrency=2)

    answers = asyncio.run(run())
    assert [answer.image for answer in answers] == [0, 1, 2]
    assert {answer.status for answer in answers} == ({200} if patience == "enough" else {429})


def test_a_server_that_answers_nothing_is_named(images):
    async def close(head: bytes, body: bytes) -> bytes:
        return b""

    load = measured(close, lambda url: each_once(url, requests_of(url, images), concurrency=1))
    with pytest.raises(BenchmarkError, match="no request was answered with 200: {'ConnectionResetError': 3}"):
        load.latency_ms(50)


def test_only_images_go_over_plain_http(images):
    with pytest.raises(BenchmarkError, match="begins with b'GIF89a'"):
        requests_of("http://127.0.0.1:8080/classify", [b"GIF89a"])
    with pytest.raises(BenchmarkError, match="https://x/classify is not a plain HTTP address"):
        requests_of("https://x/classify", images)


def test_the_client_is_not_the_bottleneck(images):
    """A request with a photograph's bytes costs the client far less than the server's cheapest answer."""

    async def at_once(head: bytes, body: bytes) -> bytes:
        return OK

    load = measured(at_once, lambda url: closed_loop(url, requests_of(url, images), concurrency=8, duration_s=1))
    # the server of this test is in the same process and counts too; both together stay far below 5 ms, a decoded JPEG
    assert load.client_cpu_s / len(load.answers) < 0.002
