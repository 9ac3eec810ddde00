"""HTTP load from one asyncio process: real image files, closed loop or open loop.

Closed loop: `concurrency` requests are always in flight, so a slow server gets fewer requests. Open loop: requests are
due at random times (Poisson) whether or not earlier ones were answered, and a latency counts from the time a request
was *due*, so that waiting which the server caused is not left out ("coordinated omission").

The client shares a small machine with the server it measures. So requests are built once and written unchanged to a
plain asyncio transport, and responses are parsed in C; the client's own cost is measured too.
"""

import asyncio
import gc
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import SplitResult, urlsplit

import httptools
import numpy as np

from deit.errors import BenchmarkError

BOUNDARY = "deit-benchmark-7f3a9c"

TYPES = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png", b"RIFF": "image/webp"}

# Below the number of connections that the gateway admits.
MAX_CONNECTIONS = 400

TIMEOUT_S = 60.0

REFUSALS = (429, 503)
MAX_REFUSALS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """The outcome of one request.

    Attributes:
        image: index of the image that was sent.
        due_s, sent_s, done_s: since the load began; in a closed loop a request is due when it is sent.
        status: of the answer; None when there was none, and `error` says why.
        headers: names in lower case.
    """

    image: int
    due_s: float
    sent_s: float
    done_s: float
    status: int | None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    error: str | None = None

    @property
    def is_ok(self) -> bool:
        return self.status == 200

    @property
    def latency_s(self) -> float:
        return self.done_s - self.due_s


@dataclass(frozen=True, kw_only=True)
class Load:
    """The answers of a measured window.

    A closed loop's are those that were complete within it, an open loop's those that were due within it.

    Attributes:
        client_cpu_s: processor time of this process in the window.
    """

    answers: tuple[Response, ...]
    duration_s: float
    client_cpu_s: float

    @property
    def rate_per_s(self) -> float:
        """Answers with status 200 a second."""
        return sum(answer.is_ok for answer in self.answers) / self.duration_s

    @property
    def statuses(self) -> Counter[int | str]:
        """How many answers of each status; a request without an answer counts under its error."""
        return Counter(answer.status or answer.error or "no answer" for answer in self.answers)

    def latency_ms(self, percentile: float) -> float:
        """The smallest latency that `percentile` % of the answers with status 200 do not exceed.

        Raises:
            BenchmarkError: nothing was answered with 200; the message says what came instead.
        """
        latencies = sorted(answer.latency_s for answer in self.answers if answer.is_ok)
        if not latencies:
            raise BenchmarkError(f"no request was answered with 200: {dict(self.statuses)}")
        return 1000 * latencies[max(0, math.ceil(percentile / 100 * len(latencies)) - 1)]


def requests_of(
    url: str, images: Sequence[bytes], *, as_form: bool = True, headers: Mapping[str, str] | None = None
) -> list[bytes]:
    """One complete HTTP request for each image.

    Args:
        url: such as "http://127.0.0.1:8080/classify?top_k=5"; the query goes along.
        as_form: a multipart form with the file field `image`, as curl -F sends it; else the image is the body.

    Raises:
        BenchmarkError: the URL is not plain HTTP, or an image is neither JPEG, PNG nor WebP.
    """
    parts = _split(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    extra = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    requests = []
    for image in images:
        media_type = media_type_of(image)
        if as_form:
            part = f'Content-Disposition: form-data; name="image"; filename="photograph"\r\nContent-Type: {media_type}'
            image = f"--{BOUNDARY}\r\n{part}\r\n\r\n".encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()
            media_type = f"multipart/form-data; boundary={BOUNDARY}"
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: {media_type}\r\n"
            f"Content-Length: {len(image)}\r\n{extra}\r\n"
        )
        requests.append(head.encode() + image)
    return requests


def media_type_of(image: bytes) -> str:
    """By the first bytes of the file."""
    for start, media_type in TYPES.items():
        if image.startswith(start):
            return media_type
    raise BenchmarkError(f"an image begins with {image[:8]!r}: the load takes JPEG, PNG and WebP files")


async def closed_loop(
    url: str, requests: Sequence[bytes], *, concurrency: int, duration_s: float, warm_up_s: float = 0
) -> Load:
    """Keep `concurrency` requests in flight, in turns through `requests`, for a warm-up and then a measured window.

    A refused request (429, 503) is sent again when the server says, as a client should: a server that is asked again at
    once spends its time on refusals.
    """
    turn = 0
    answers: list[Response] = []
    async with Connections(url, at_most=concurrency) as connections:
        clock = Clock()

        async def worker() -> None:
            nonlocal turn
            while clock.now_s() < warm_up_s + duration_s:
                image, turn = turn % len(requests), turn + 1
                answer = await connections.ask(requests[image], image=image, due_s=clock.now_s(), clock=clock)
                answers.append(answer)
                if answer.status in REFUSALS:
                    left_s = max(0.0, warm_up_s + duration_s - clock.now_s())
                    await asyncio.sleep(min(retry_after_s(answer), left_s))

        workers = [asyncio.create_task(worker()) for _ in range(concurrency)]
        await asyncio.sleep(warm_up_s)
        cpu_before = time.process_time()
        await asyncio.sleep(warm_up_s + duration_s - clock.now_s())
        client_cpu_s = time.process_time() - cpu_before
        await asyncio.gather(*workers)
    within = tuple(answer for answer in answers if warm_up_s <= answer.done_s < warm_up_s + duration_s)
    return Load(answers=within, duration_s=duration_s, client_cpu_s=client_cpu_s)


async def each_once(url: str, requests: Sequence[bytes], *, concurrency: int) -> Load:
    """Send every request once; the answers come in the order of `requests`."""
    left = iter(range(len(requests)))
    answers: list[Response] = []
    async with Connections(url, at_most=concurrency) as connections:
        clock, cpu_before = Clock(), time.process_time()

        async def worker() -> None:
            for image in left:
                answers.append(await connections.ask(requests[image], image=image, due_s=clock.now_s(), clock=clock))

        await asyncio.gather(*(worker() for _ in range(concurrency)))
    return Load(
        answers=tuple(sorted(answers, key=lambda answer: answer.image)),
        duration_s=clock.now_s(),
        client_cpu_s=time.process_time() - cpu_before,
    )


async def each_answered(url: str, requests: Sequence[bytes], *, concurrency: int) -> list[Response]:
    """An answer to every request, in order; what an overloaded server refuses (429, 503) is sent again when it says.

    After MAX_REFUSALS refusals in a row of everything that is left, the refusals are the answers.
    """
    answers: dict[int, Response] = {}
    left, refusals = list(range(len(requests))), 0
    while left and refusals < MAX_REFUSALS:
        load = await each_once(url, [requests[place] for place in left], concurrency=concurrency)
        answers |= dict(zip(left, load.answers, strict=True))
        refused = [place for place in left if answers[place].status in REFUSALS]
        refusals = refusals + 1 if len(refused) == len(left) else 0
        left = refused
        if left:
            await asyncio.sleep(max(retry_after_s(answers[place]) for place in left))
    return [replace(answers[place], image=place) for place in range(len(requests))]


def retry_after_s(refusal: Response) -> float:
    return float(refusal.headers.get("retry-after", 1))


async def open_loop(
    url: str,
    requests: Sequence[bytes],
    *,
    rate_per_s: float,
    duration_s: float,
    warm_up_s: float = 0,
    seed: int = 0,
    max_connections: int = MAX_CONNECTIONS,
) -> Load:
    """Requests due at the times of a Poisson process, whatever happens to earlier ones.

    If all `max_connections` are busy, a request waits for one, and the wait counts in its latency.
    """
    random = np.random.default_rng(seed)
    count = int((warm_up_s + duration_s) * rate_per_s * 1.5) + 100  # more than will be due
    due_times = np.cumsum(random.exponential(1 / rate_per_s, count))
    due_times = due_times[due_times < warm_up_s + duration_s]
    async with Connections(url, at_most=max_connections) as connections, asyncio.TaskGroup() as group:
        clock, cpu_before = Clock(), time.process_time()
        tasks = []
        for turn, due_s in enumerate(due_times.tolist()):
            if (early_s := due_s - clock.now_s()) > 0:
                await asyncio.sleep(early_s)
            image = turn % len(requests)
            ask = connections.ask(requests[image], image=image, due_s=due_s, clock=clock)
            tasks.append(group.create_task(ask))
        if (rest_s := warm_up_s + duration_s - clock.now_s()) > 0:
            await asyncio.sleep(rest_s)
        client_cpu_s = (time.process_time() - cpu_before) * duration_s / (warm_up_s + duration_s)
    answers = tuple(answer for answer in (task.result() for task in tasks) if answer.due_s >= warm_up_s)
    return Load(answers=answers, duration_s=duration_s, client_cpu_s=client_cpu_s)


class Connections:
    """Keep-alive connections to one server, opened as they are needed, at most so many at once.

    No garbage is collected while they are open: with torch loaded, a collection takes up to a second, in which nothing
    is sent or read, and which the latencies would blame on the server.
    """

    def __init__(self, url: str, *, at_most: int) -> None:
        parts = _split(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._turns = asyncio.Semaphore(at_most)
        self._idle: list[_Connection] = []

    async def __aenter__(self) -> "Connections":
        gc.collect()
        gc.disable()
        return self

    async def __aexit__(self, *_: object) -> None:
        gc.enable()
        for connection in self._idle:
            connection.close()
        await asyncio.sleep(0)  # a transport closes its socket in the loop's next turn

    async def ask(self, request: bytes, *, image: int, due_s: float, clock: "Clock") -> Response:
        """Send one request and wait for its answer, which also holds any error."""
        async with self._turns:
            sent_s = clock.now_s()
            connection: _Connection | None = None
            status: int | None = None
            headers: dict[str, str] = {}
            body, error = b"", None
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    connection = await self._connection()
                    status, headers, body = await connection.ask(request)
            except TimeoutError:
                error = f"no answer within {TIMEOUT_S:g} s"
            except (OSError, httptools.HttpParserError) as failure:
                error = type(failure).__name__
            done_s = clock.now_s()
            if connection is not None:
                if status is not None and connection.is_reusable:
                    self._idle.append(connection)
                else:
                    connection.close()
        return Response(
            image=image,
            due_s=due_s,
            sent_s=sent_s,
            done_s=done_s,
            status=status,
            headers=headers,
            body=body,
            error=error,
        )

    async def _connection(self) -> "_Connection":
        while self._idle:
            connection = self._idle.pop()
            if connection.is_reusable:
                return connection
            connection.close()
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, self._host, self._port)
        return connection


class _Connection(asyncio.Protocol):
    """One connection, with one request on it at a time. The methods on_… are called by the parser."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answered: asyncio.Future[tuple[int, dict[str, str], bytes]] | None = None
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._keeps_alive = True

    @property
    def is_reusable(self) -> bool:
        return self._keeps_alive and self._transport is not None and not self._transport.is_closing()

    async def ask(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer. Raises OSError or HttpParserError."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError
        self._parser = httptools.HttpResponseParser(self)
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answered

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(error)

    def connection_lost(self, error: Exception | None) -> None:
        self._keeps_alive = False
        self._fail(error if isinstance(error, OSError) else ConnectionResetError())

    def on_message_begin(self) -> None:
        self._headers, self._body = {}, []

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, part: bytes) -> None:
        self._body.append(part)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue and its like come before the answer
            return
        self._keeps_alive = self._parser.should_keep_alive()
        if self._answered is not None and not self._answered.done():
            self._answered.set_result((status, self._headers, b"".join(self._body)))

    def _fail(self, error: Exception) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error)


class Clock:
    """Seconds since the load began."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    def now_s(self) -> float:
        return time.perf_counter() - self._began


def _split(url: str) -> SplitResult:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise BenchmarkError(f"{url} is not a plain HTTP address, such as http://127.0.0.1:8080/classify")
    return parts
