"""Classify images from Python; needs only httpx:

    from serving.client import Client

    with Client("http://127.0.0.1:8080") as client:
        print(client.classify("photo.jpg").best.label)

A busy server says when to retry; both clients wait that long and retry, for at most `patience_s`. A request whose
connection breaks is sent once more.
"""

import asyncio
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypedDict, Unpack

import httpx

from serving.client.answers import Classification, Refused, Unreachable

DEFAULT_URL = "http://127.0.0.1:8080"

KEY_VARIABLE = "DEIT_API_KEY"
"""Holds the key when none is given. A command line can be read by every local user, the environment cannot."""

# Added to the server's Retry-After, so that clients that were refused together do not come back together.
JITTER = 0.25

# A connection kept between requests may break just as the next one is sent: the server or a proxy closes it as idle, or
# httpcore 1.0 does so for another task. Asking twice is safe, because no request changes the server.
BROKEN_CONNECTION = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)

Image = bytes | str | Path


class ClassifyOptions(TypedDict, total=False):
    """The parameters of a request, as docs/serving.md describes them."""

    model: str | None
    version: str | None
    top_k: int | None
    min_probability: float | None
    abstain: bool
    heads: bool
    explain: bool
    embedding: bool
    pixels: bool


class Client:
    """Classifies on one server, one image at a time; use it as a context manager, or close it.

    Args:
        api_key: if the server needs one. Default: the environment variable DEIT_API_KEY.
        timeout_s: for one attempt.
        patience_s: how long to keep trying a busy server before giving up.
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, api_key: str | None = None, timeout_s: float = 30.0, patience_s: float = 60.0
    ) -> None:
        self._http = httpx.Client(base_url=url, headers=_headers(api_key), timeout=timeout_s)
        self._patience_s = patience_s

    def classify(self, image: Image, **options: Unpack[ClassifyOptions]) -> Classification:
        """The answer for an image: its bytes, or the path of a file.

        Raises:
            Refused, Unreachable
            OSError: the file cannot be read.
        """
        return Classification.from_json(self._send(self._http.build_request(*_post(options), content=_read(image))))

    def models(self) -> list[dict[str, Any]]:
        """The models that are served, as GET /models lists them. Raises Refused, Unreachable."""
        models: list[dict[str, Any]] = self._send(self._http.build_request("GET", "/models"))["models"]
        return models

    def _send(self, request: httpx.Request) -> Any:
        waits = _waits_s(self._patience_s)
        while True:
            try:
                try:
                    response = self._http.send(request)
                except BROKEN_CONNECTION:
                    response = self._http.send(request)
            except httpx.TransportError as error:
                raise _unreachable(request, error) from error
            if (wait_s := _wait_s(response, waits)) is None:
                return _body(response)
            time.sleep(wait_s)

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()


class AsyncClient:
    """Client for asyncio: many images at once over a few connections."""

    def __init__(
        self, url: str = DEFAULT_URL, *, api_key: str | None = None, timeout_s: float = 30.0, patience_s: float = 60.0
    ) -> None:
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(api_key), timeout=timeout_s)
        self._patience_s = patience_s

    async def classify(self, image: Image, **options: Unpack[ClassifyOptions]) -> Classification:
        """As `Client.classify`."""
        content = await asyncio.to_thread(_read, image)
        return Classification.from_json(await self._send(self._http.build_request(*_post(options), content=content)))

    async def models(self) -> list[dict[str, Any]]:
        """As `Client.models`."""
        models: list[dict[str, Any]] = (await self._send(self._http.build_request("GET", "/models")))["models"]
        return models

    async def _send(self, request: httpx.Request) -> Any:
        waits = _waits_s(self._patience_s)
        while True:
            try:
                try:
                    response = await self._http.send(request)
                except BROKEN_CONNECTION:
                    response = await self._http.send(request)
            except httpx.TransportError as error:
                raise _unreachable(request, error) from error
            if (wait_s := _wait_s(response, waits)) is None:
                return _body(response)
            await asyncio.sleep(wait_s)

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        await self.close()


def _headers(api_key: str | None) -> dict[str, str]:
    key = api_key or os.environ.get(KEY_VARIABLE)
    return {"Authorization": f"Bearer {key}"} if key else {}


def _post(options: ClassifyOptions) -> tuple[str, httpx.URL]:
    """Method and address."""
    asked = {name: value for name, value in options.items() if value is not None and value is not False}
    return "POST", httpx.URL("/classify", params=asked)


def _read(image: Image) -> bytes:
    return image if isinstance(image, bytes) else Path(image).read_bytes()


def _unreachable(request: httpx.Request, error: httpx.TransportError) -> Unreachable:
    return Unreachable(f"{request.url.copy_with(query=None)} gave no answer: {error or type(error).__name__}")


def _waits_s(patience_s: float) -> Iterator[float]:
    """The seconds of patience that are left, at each refusal."""
    until_s = time.monotonic() + patience_s
    while True:
        yield until_s - time.monotonic()


def _wait_s(response: httpx.Response, patience_left_s: Iterator[float]) -> float | None:
    """How long to wait before a retry; None if the response is final."""
    retry_after = response.headers.get("Retry-After", "")
    if response.status_code not in (429, 503) or not retry_after.isdecimal():
        return None
    wait_s = int(retry_after) * (1 + JITTER * random.random())
    return wait_s if wait_s <= next(patience_left_s) else None


def _body(response: httpx.Response) -> Any:
    """Raises Refused."""
    if response.is_success:
        return response.json()
    if response.headers.get("Content-Type") == "application/problem+json":
        problem = response.json()
        name = problem["type"].rpartition("/")[2]
        raise Refused(response.status_code, name, problem["title"], problem["detail"])
    raise Refused(response.status_code, "unknown", f"HTTP {response.status_code}", "not an answer of the gateway")
