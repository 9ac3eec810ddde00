"""Checks the key before any of the body is read, and limits the rate of requests of each key."""

import asyncio
import math
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.gateway.api_keys import ApiKeys
from serving.gateway.errors import Problem, RateLimited, Unauthorized
from serving.gateway.paths import LIVE, PING, READY, answering_route
from serving.gateway.record import record_of

# Paths that reveal nothing about models or traffic: health, the page without answers, the description of the API.
OPEN_PATHS = ("/", "/healthz", "/readyz", PING, LIVE, READY, "/docs", "/openapi.json")
OPEN_FOLDERS = ("/static/", "/problems/")

WRONG_KEY_S = 0.5
"""Delay of the answer to a wrong key, so that a connection can try only two a second."""

# For OpenAPI: either will do.
KEY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


class TokenBucket:
    """`rate` permits per second, with bursts of one second's worth."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._capacity = max(1.0, rate)
        self._tokens = self._capacity
        self._last_s = time.monotonic()

    def wait_s(self) -> float:
        """Take a permit and return 0, or return the seconds until there is one."""
        now_s = time.monotonic()
        self._tokens = min(self._capacity, self._tokens + (now_s - self._last_s) * self._rate)
        self._last_s = now_s
        if self._tokens < 1:
            return (1 - self._tokens) / self._rate
        self._tokens -= 1
        return 0.0


class Authentication:
    """Lets requests with a valid key through, as `Authorization: Bearer KEY` or `X-API-Key: KEY`.

    Args:
        rate_limit: how many requests with images each key may send per second; None for no limit.
    """

    def __init__(self, app: ASGIApp, keys: ApiKeys, *, rate_limit: float | None) -> None:
        self._app = app
        self._keys = keys
        self._rate_limit = rate_limit
        self._buckets: dict[str, TokenBucket] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_open(scope["path"]):
            try:
                record_of(scope).key_name = await self._check(scope)
            except Problem as problem:
                await problem.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _check(self, scope: Scope) -> str:
        key = given_key(Headers(scope=scope))
        if key is None:
            raise Unauthorized("the request has no key; send it as: Authorization: Bearer KEY")
        name = self._keys.name_of(key)
        if name is None:
            await asyncio.sleep(WRONG_KEY_S)
            raise Unauthorized("the key is unknown")
        if self._rate_limit is not None and answering_route(scope["path"]) is not None:
            wait_s = self._buckets.setdefault(name, TokenBucket(self._rate_limit)).wait_s()
            if wait_s > 0:
                raise RateLimited("the key exceeded its rate limit", retry_after_s=math.ceil(wait_s))
        return name


def is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS)


def given_key(headers: Headers) -> str | None:
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credentials:
        return credentials.strip()
    return headers.get("x-api-key")
