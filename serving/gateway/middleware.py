"""What every request passes before routing: a request id, a limit on the body, and an answer whatever happens.

Pure ASGI, so that a body over the limit is refused before anything reads it.
"""

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.gateway.errors import BodyTooLarge, Internal, MalformedRequest

logger = logging.getLogger(__name__)

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestEnvelope:
    """Gives every request an id and every answer its headers, and turns an unexpected exception into a 500.

    The id is the caller's X-Request-ID where that is harmless, else a new one. `scope["state"]` holds it as
    `request_id`, and as `started_s` when the request began, from which its deadline counts.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {}).update(request_id=request_id, started_s=time.monotonic())
        has_started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except ClientDisconnect:
            logger.debug("request %s: the client went away", request_id)
        except Exception:
            logger.exception("request %s failed", request_id)
            if has_started:
                raise
            response = Internal("an unexpected error; the request id finds it in the server's log").response()
            await response(scope, receive, send_with_headers)


class BodyLimit:
    """Refuses a body over the limit: at once when its length is declared, else as soon as it has arrived.

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

        async def receive_within_limit() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._too_large("more bytes than that")
            return message

        await self._app(scope, receive_within_limit, send)

    def _too_large(self, found: str) -> BodyTooLarge:
        return BodyTooLarge(f"the limit is {self._max_bytes} bytes, and the body has {found}")
