"""What every request passes before routing: a request id, limits on the body, admission, and a response in every case.

Pure ASGI, so that requests are refused before their body is read.
"""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.gateway.admission import Admission
from serving.gateway.client_address import Network, client_address
from serving.gateway.errors import BodyTimeout, BodyTooLarge, Internal, MalformedRequest, Problem
from serving.gateway.metrics import Metrics
from serving.gateway.metrics_port import METRICS
from serving.gateway.paths import LIVE, MODEL, PING, READY, VERTEX, answering_route
from serving.gateway.record import RequestRecord
from serving.gateway.refusals import Refusals
from serving.gateway.tracing import Tracing

logger = logging.getLogger(__name__)
request_logger = logging.getLogger("serving.request")

CLIENT_LEFT = 499
"""Status in metrics and logs, as in nginx; the client is gone and reads no answer."""

# Requested every few seconds by machines.
UNLOGGED_ROUTES = ("/healthz", "/readyz", METRICS, PING, LIVE, READY, f"{MODEL}/ready", VERTEX)

# The deadline of the request bounds the whole body.
BODY_STALL_S = 5.0

# An answer is data: nothing in it is to be run, shown in a frame or kept. The page has its own policy.
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(eq=False)
class RequestEnvelope:
    """The outermost layer: an id and a record for each request, headers for each response, a 500 for unexpected errors.

    The only place that counts, traces and logs requests. The id is the caller's X-Request-ID if it is harmless, else a
    new one.
    """

    app: ASGIApp
    metrics: Metrics
    tracing: Tracing | None
    logs_requests: bool
    trusted_proxies: Sequence[Network] = ()
    _refusals: Refusals = field(default_factory=Refusals, init=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # as GET; the server, which has its own scope, leaves the body out
            scope = {**scope, "method": "GET"}
        root_path: str = scope["root_path"]
        if root_path:
            scope = {**scope, "root_path": "", "path": below(scope["path"], root_path)}
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        client = client_address(scope, self.trusted_proxies)
        record = RequestRecord(request_id=request_id, started_s=time.monotonic(), root_path=root_path, client=client)
        scope.setdefault("state", {})["record"] = record
        if self.tracing is not None and scope["path"] not in UNLOGGED_ROUTES:
            record.trace = self.tracing.begin(headers, scope["method"])
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answered = MutableHeaders(scope=message)
                answered["X-Request-ID"] = request_id
                for name, value in SECURITY_HEADERS.items():
                    answered.setdefault(name, value)
            await send(message)

        self.metrics.begin()
        try:
            await self.app(scope, receive, send_with_headers)
        except ClientDisconnect:
            status = CLIENT_LEFT
        except asyncio.CancelledError:
            status = status or CLIENT_LEFT
            raise
        except Exception:
            logger.exception("request %s failed", request_id)
            if status:
                raise
            response = Internal("an unexpected error; the server's log has it under the request id").response()
            await response(scope, receive, send_with_headers)
        finally:
            self._end(scope, record, status)

    def _end(self, scope: Scope, record: RequestRecord, status: int) -> None:
        seconds = time.monotonic() - record.started_s
        route = route_of(scope)
        self.metrics.end(record, route=route, status=status, seconds=seconds)
        if record.trace is not None:
            record.trace.end(route=route, status=status, request_id=record.request_id)
        if self.logs_requests and route not in UNLOGGED_ROUTES:
            if status in (429, 503):
                self._refusals.count(status, record.client)
            else:
                request_logger.info("%s %s %d", scope["method"], route, status, extra=log_values(record, seconds))


def below(path: str, root_path: str) -> str:
    """The path without the root path, which uvicorn prepends; a proxy may have left it in too."""
    path = path.removeprefix(root_path)
    return path.removeprefix(root_path) if path == root_path or path.startswith(f"{root_path}/") else path


def route_of(scope: Scope) -> str:
    """The path as declared, so that there are only a few; "other" for unknown paths."""
    path: str = scope["path"]
    declared: str = getattr(scope.get("route"), "path", "")  # none where it was refused on the way
    if path.startswith("/static/"):
        return "/static/"
    return declared or answering_route(path) or (METRICS if path == METRICS else "other")


def log_values(record: RequestRecord, seconds: float) -> dict[str, object]:
    values: dict[str, object] = {"request_id": record.request_id, "ms": round(seconds * 1000, 1)}
    optional = {
        "trace_id": record.trace and record.trace.trace_id,
        "client": record.client,
        "key": record.key_name,
        "model": record.model,
        "version": " ".join(sorted({image.version for image in record.images})),
        "images": len(record.images),
        "problems": record.problems,
    }
    stages = {f"{stage}_ms": round(each * 1000, 1) for stage, each in record.stages_s().items()}
    return values | {name: value for name, value in optional.items() if value} | stages


class BodyGuard:
    """Refuses a body over the limit (immediately if its length is declared) and one that stalls.

    Starlette's own limit (FastAPI's `max_body_size`) answers in plain text, also in place of an answer of ours
    (Starlette 1.10).
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length")
        if declared is not None and not declared.isdecimal():
            response = MalformedRequest("Content-Length is not a number").response()
            await response(scope, receive, send)
            return
        if declared is not None and int(declared) > self._max_bytes:
            await self._too_large(f"{declared} bytes").response()(scope, receive, send)
            return
        received = 0
        is_complete = False

        async def guarded_receive() -> Message:
            nonlocal received, is_complete
            if is_complete:  # the application waits for the client to leave
                return await receive()
            try:
                async with asyncio.timeout(BODY_STALL_S):
                    message = await receive()
            except TimeoutError as error:
                raise BodyTimeout(f"the body stalled for {BODY_STALL_S:g} s") from error
            is_complete = not message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._too_large("more bytes than that")
            return message

        await self._app(scope, guarded_receive, send)

    def _too_large(self, found: str) -> BodyTooLarge:
        return BodyTooLarge(f"the limit is {self._max_bytes} bytes, and the body has {found}")


class AdmissionControl:
    """Refuses images that cannot be answered soon, before a byte of the body is read, and counts the rest.

    An admitted request has its ticket in `scope["state"]["ticket"]`.
    """

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self._app = app
        self._admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or answering_route(scope["path"]) is None:
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length")
        try:
            ticket = self._admission.admit(None if declared is None else int(declared))
        except Problem as problem:
            await problem.response()(scope, receive, send)
            return
        scope["state"]["ticket"] = ticket

        async def counted_receive() -> Message:
            message = await receive()
            ticket.arrive(len(message.get("body", b"")))
            return message

        try:
            await self._app(scope, counted_receive, send)
        finally:
            ticket.release()
