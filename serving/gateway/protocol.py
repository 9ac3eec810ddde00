"""HTTP/1.1 on a connection, with the limits that uvicorn leaves to a proxy.

uvicorn 0.54 keeps a connection open forever if it sends nothing, half a header or half a body, accepts any number of
headers and pipelined requests, and after an early response reads everything that the client still sends. Here every
state of a connection has limits on time and size, and requests that two servers could read differently are
refused (RFC 9112 section 11.2, request smuggling).
"""

import asyncio
import weakref
from collections.abc import Callable
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from serving.gateway.ambiguity import ambiguity
from serving.gateway.crowd import Stage, dispensable
from serving.gateway.errors import (
    HeadersTooLarge,
    HeaderTimeout,
    MalformedRequest,
    MethodNotAllowed,
    Overloaded,
    Problem,
    UrlTooLong,
)
from serving.gateway.pipeline_flow import PipelineFlow

MAX_CONNECTIONS = 512
MAX_URL_BYTES = 8 * 2**10
MAX_HEADERS = 64
MAX_HEADER_BYTES = 16 * 2**10

MAX_UNFINISHED_BYTES = MAX_URL_BYTES + MAX_HEADER_BYTES
"""Most bytes that the parser may buffer: an unfinished line of a header or of a trailer."""

MAX_WAITING = 16
"""Requests that wait on one connection while another is answered (pipelining, which only test tools do). With more the
connection ends after their answers; a client must expect that and send the rest again (RFC 9112 section 9.3.2)."""

HEADER_TIMEOUT_S = 5.0

LINGER_S = 5.0
"""After an answer that did not wait for the body, the rest is read and dropped, because closing at once would make the
kernel throw away the answer before a client that is still sending has read it."""

SLOW_READER_S = 10.0
"""Beyond the longest request: the answer has been written, and the client does not read it."""

LATE_REQUEST_S = 0.5
"""When the server stops, a request may already be on its way over an idle connection."""


class GuardedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.address = ""
        self.since_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._is_reading_header = True
        self._is_in_header = False
        self._is_stopping = False
        self._is_last = False
        self._header_bytes = 0
        self._unfinished_bytes = 0
        self._refusal: Problem | None = None
        self._is_refused = False
        self._unsent: list[bytes] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = PipelineFlow(transport, self.pipeline)
        self.address = self.client[0] if self.client else ""
        self.since_s = self.loop.time()
        if len(self.connections) > 2 * MAX_CONNECTIONS:  # so many are being refused
            self._is_refused = True
            transport.abort()
            return
        if len(self.connections) > MAX_CONNECTIONS and not self._make_room():
            self._refuse(Overloaded(f"{MAX_CONNECTIONS} connections are open, which is the limit"))
            return
        self._end_after(HEADER_TIMEOUT_S, self._header_timed_out)

    @property
    def stage(self) -> Stage:
        """As `dispensable` asks for it."""
        if self._unsent or self.transport.get_write_buffer_size():
            return Stage.ANSWERING
        if self._is_reading_header:
            return Stage.ARRIVING if self._is_in_header else Stage.IDLE
        if self.cycle.response_complete:  # what still comes is dropped
            return Stage.IDLE
        return Stage.ARRIVING if self.cycle.more_body and not self.pipeline else Stage.ANSWERING

    def _make_room(self) -> bool:
        """Close another connection for this one."""
        others = cast("set[GuardedProtocol]", self.connections) - {self}
        victim = dispensable((other for other in others if not other.transport.is_closing()), self)
        if victim is not None:
            victim.transport.abort()
        return victim is not None

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._unset_keepalive_if_required()
        if self._is_reading_header and self._timer is None:  # the next request on this connection begins
            self._end_after(HEADER_TIMEOUT_S, self._header_timed_out)
        self._unfinished_bytes += len(data)  # until a callback shows that something came to its end
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self._refuse(self._refusal or MalformedRequest("the request is not valid HTTP/1.1 (RFC 9112)"))
            return
        if self._unfinished_bytes > MAX_UNFINISHED_BYTES and not self._is_refused:
            self._refuse(HeadersTooLarge(f"the limit is {MAX_HEADER_BYTES} bytes"))

    def _parse(self, data: bytes) -> None:
        """The parser takes everything after an `Upgrade` for another protocol, even the body.

        We have no other one, so the request continues as HTTP/1.1 (RFC 9110 section 7.8): another parser reads it again
        without that line, and then what followed its header.
        """
        while True:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._header_without_upgrade() + data[upgrade.args[0] :]
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
            else:
                return

    def _header_without_upgrade(self) -> bytes:
        first = b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        lines = [b"%s: %s" % (name, value) for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join([first, *lines, b"", b""])

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_header = True
        self._header_bytes = 0
        self._unfinished_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._unfinished_bytes = 0
        if len(self.url) > MAX_URL_BYTES:
            self._object(UrlTooLong(f"the limit is {MAX_URL_BYTES} bytes"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A line of the header, or of a trailer, which is dropped: it must not be taken for a header line."""
        if self._is_in_header:
            super().on_header(name, value)
        self._unfinished_bytes = 0
        self._header_bytes += len(name) + len(value) + 4
        if len(self.headers) > MAX_HEADERS or self._header_bytes > MAX_HEADER_BYTES:
            self._object(HeadersTooLarge(f"the limit is {MAX_HEADERS} lines and {MAX_HEADER_BYTES} bytes"))

    def on_headers_complete(self) -> None:
        self._is_in_header = False
        self._header_bytes = 0
        self._unfinished_bytes = 0
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                self._object(MethodNotAllowed("CONNECT is for proxies"))
            return  # `_parse` reads it again
        if (objection := ambiguity(self.headers, self.parser.get_http_version())) is not None:
            self._object(MalformedRequest(objection))
        if len(self.pipeline) == MAX_WAITING:
            self._object(Overloaded(f"{MAX_WAITING} requests wait on this connection, which is the limit"))
        self._is_reading_header = False
        super().on_headers_complete()
        self.cycle.transport = CycleTransport(self, self.cycle)  # type: ignore[assignment]
        if self._is_stopping:
            self.cycle.keep_alive = False
        self._end_after_longest_request()

    def on_body(self, body: bytes) -> None:
        self._unfinished_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unfinished_bytes = 0
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        if self.cycle.response_complete and self.cycle.more_body:  # it lingered, and the body came to its end
            self.cycle.more_body = False
            self._await_next_request()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        if self.pipeline or not self.cycle.response_complete:  # the next request is here already
            super().on_response_complete()
            self._end_after_longest_request()
            return
        is_more_coming = self.cycle.more_body or self._is_last
        super().on_response_complete()
        if self.transport.is_closing():  # which waits until the client has read
            self._end_after(SLOW_READER_S, self.transport.abort)
        elif is_more_coming:
            self._unset_keepalive_if_required()
            self._end_after(LINGER_S, self.transport.abort)
        else:
            self._await_next_request()

    def close_after_answer(self, cycle: RequestResponseCycle) -> None:
        """The last answer is written. If more data is coming in, the client may not have read it yet."""
        self._send()
        if (cycle.more_body or self._is_last) and self.transport.can_write_eof():
            self._is_refused = True  # drop what comes
            self.transport.write_eof()
        else:
            self.transport.close()

    def send_soon(self, data: bytes) -> None:
        """Send head and body, which uvicorn writes separately, in one piece, because each piece wakes the client."""
        if not self._unsent:
            self.loop.call_soon(self._send)
        self._unsent.append(data)

    def _send(self) -> None:
        data, self._unsent = b"".join(self._unsent), []
        if data and not self.transport.is_closing():  # the client may have left meanwhile
            self.transport.write(data)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._end_after(SLOW_READER_S, self.transport.abort)  # closing waits for what is not yet read

    def shutdown(self) -> None:
        """The server stops, but requests that were sent before the client could know are still answered."""
        self._is_stopping = True
        if self.cycle is None or self.cycle.response_complete:
            self._end_after(LATE_REQUEST_S, self.transport.close)
        else:
            self.cycle.keep_alive = False

    def _object(self, problem: Problem) -> None:
        """Make the parser stop inside its callback."""
        self._refusal = problem
        raise ValueError(problem.detail)

    def _refuse(self, problem: Problem) -> None:
        """Answer outside the application, which sees no request, and close."""
        self._send()
        self._is_refused = True  # drop what comes
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body:  # the fault is in what follows a good request, which gets its answer
                self._is_last = True
                cycle.keep_alive = False
                return
            # The application waits for the rest of this body.
            cycle.disconnected = True
            cycle.message_event.set()
            if self.pipeline or cycle.response_started:
                self.transport.close()  # the answer that the client waits for is another one
                self._end_after(LINGER_S, self.transport.abort)
                return
            self.transport.write(problem.raw_response(self.root_path))
        elif cycle is None or not cycle.more_body:  # else the fault is in the rest of a body that has its answer
            self.transport.write(problem.raw_response(self.root_path))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._end_after(LINGER_S, self.transport.abort)

    def _header_timed_out(self) -> None:
        if self._is_in_header:
            self._refuse(HeaderTimeout(f"the header was not complete after {HEADER_TIMEOUT_S:g} s"))
        else:
            self.transport.close()

    def _await_next_request(self) -> None:
        self._is_reading_header = True
        self.since_s = self.loop.time()
        self._stop_timer()
        if self._is_stopping:
            self._end_after(LATE_REQUEST_S, self.transport.close)

    def _end_after_longest_request(self) -> None:
        assert self.config.timeout_graceful_shutdown is not None  # the launcher sets it above the longest request
        self._end_after(self.config.timeout_graceful_shutdown + SLOW_READER_S, self.transport.abort)

    def _end_after(self, seconds: float, action: Callable[[], None]) -> None:
        """One timer per connection: a new action replaces the pending one."""
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, action)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class CycleTransport:
    """A request's view of its connection; uvicorn's cycle writes to it and closes it after the last answer."""

    def __init__(self, protocol: GuardedProtocol, cycle: RequestResponseCycle) -> None:
        self._protocol = protocol
        # Weak, because the cycle holds this: in a circle the body of a refused request would stay until the next full
        # garbage collection, which with hundreds of them a minute was 60 MiB late.
        self._cycle = weakref.ref(cycle)
        self.write = protocol.send_soon
        self.is_closing = protocol.transport.is_closing

    def close(self) -> None:
        cycle = self._cycle()
        assert cycle is not None  # it is the caller
        self._protocol.close_after_answer(cycle)
