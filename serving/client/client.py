"""Classify pictures from Python, with httpx alone:

    from serving.client import Client

    with Client("http://127.0.0.1:8080") as client:
        print(client.classify("photo.jpg").best.label)

A server under load says when to come back; both clients wait that long and ask again, for at most `patience_s`.
"""

import asyncio
import os
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from deit.errors import DeitError

DEFAULT_URL = "http://127.0.0.1:8080"

KEY_VARIABLE = "DEIT_API_KEY"
"""Holds the key when none is given. A command line can be read by every local user, the environment cannot."""

# Added to the server's Retry-After, so that clients that were refused together do not come back together.
JITTER = 0.25

Image = bytes | str | Path


class ClientError(DeitError):
    """The server gave no answer."""


class Unreachable(ClientError):
    """Nobody listens there, or the connection broke."""


class Refused(ClientError):
    """The server refused, by a problem document (RFC 9457).

    Attributes:
        status: of HTTP.
        problem: its name, such as "undecodable-image"; docs/serving.md lists them.
        title, detail: for people.
    """

    def __init__(self, status: int, problem: str, title: str, detail: str) -> None:
        super().__init__(f"{title}: {detail}")
        self.status = status
        self.problem = problem
        self.title = title
        self.detail = detail


@dataclass(frozen=True)
class Prediction:
    index: int
    label: str
    probability: float


@dataclass(frozen=True)
class Heads:
    """What each head of a distilled model says by itself, best first; the divergence is in bits."""

    class_head: tuple[Prediction, ...]
    distillation_head: tuple[Prediction, ...]
    agree: bool
    jensen_shannon_divergence: float


@dataclass(frozen=True)
class Classification:
    """Attributes:
    predictions: best first; empty when the model abstained (`min_probability`).
    heads: when they were asked for.
    """

    model: str
    version: str
    predictions: tuple[Prediction, ...]
    heads: Heads | None

    @property
    def best(self) -> Prediction | None:
        return self.predictions[0] if self.predictions else None

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "Classification":
        heads = body.get("heads")
        return cls(
            model=body["model"],
            version=body["version"],
            predictions=_predictions(body["predictions"]),
            heads=heads
            and Heads(
                class_head=_predictions(heads["class"]),
                distillation_head=_predictions(heads["distillation"]),
                agree=heads["agree"],
                jensen_shannon_divergence=heads["jensen_shannon_divergence"],
            ),
        )


class Client:
    """Asks one server, one picture at a time; use it as a context manager, or close it.

    Args:
        api_key: where the server asks for one; without it, that of the environment variable DEIT_API_KEY.
        timeout_s: for one attempt.
        patience_s: how long to come back to a server that is too busy before giving up.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        patience_s: float = 60.0,
    ) -> None:
        self._http = httpx.Client(base_url=url, headers=_headers(api_key), timeout=timeout_s)
        self._patience_s = patience_s

    def classify(
        self,
        image: Image,
        *,
        model: str | None = None,
        version: str | None = None,
        top_k: int | None = None,
        min_probability: float | None = None,
        heads: bool = False,
    ) -> Classification:
        """The answer for an image: its bytes, or the path of a file.

        Raises:
            Refused, Unreachable
            OSError: the file cannot be read.
        """
        request = self._http.build_request(
            "POST", "/classify", params=_query(model, version, top_k, min_probability, heads), content=_content(image)
        )
        return Classification.from_json(self._send(request))

    def models(self) -> list[dict[str, Any]]:
        """What is served, as GET /models tells it. Raises Refused, Unreachable."""
        models: list[dict[str, Any]] = self._send(self._http.build_request("GET", "/models"))["models"]
        return models

    def _send(self, request: httpx.Request) -> Any:
        waits = _waits_s(self._patience_s)
        while True:
            try:
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
    """As Client, for asyncio: many pictures at once over a few connections."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        patience_s: float = 60.0,
    ) -> None:
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(api_key), timeout=timeout_s)
        self._patience_s = patience_s

    async def classify(
        self,
        image: Image,
        *,
        model: str | None = None,
        version: str | None = None,
        top_k: int | None = None,
        min_probability: float | None = None,
        heads: bool = False,
    ) -> Classification:
        """As `Client.classify`."""
        content = await asyncio.to_thread(_content, image)
        request = self._http.build_request(
            "POST", "/classify", params=_query(model, version, top_k, min_probability, heads), content=content
        )
        return Classification.from_json(await self._send(request))

    async def models(self) -> list[dict[str, Any]]:
        """As `Client.models`."""
        models: list[dict[str, Any]] = (await self._send(self._http.build_request("GET", "/models")))["models"]
        return models

    async def _send(self, request: httpx.Request) -> Any:
        waits = _waits_s(self._patience_s)
        while True:
            try:
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


def _query(
    model: str | None, version: str | None, top_k: int | None, min_probability: float | None, heads: bool
) -> dict[str, Any]:
    asked = {
        "model": model,
        "version": version,
        "top_k": top_k,
        "min_probability": min_probability,
        "heads": heads or None,
    }
    return {name: value for name, value in asked.items() if value is not None}


def _content(image: Image) -> bytes:
    return image if isinstance(image, bytes) else Path(image).read_bytes()


def _predictions(listed: list[dict[str, Any]]) -> tuple[Prediction, ...]:
    return tuple(Prediction(**each) for each in listed)


def _unreachable(request: httpx.Request, error: httpx.TransportError) -> Unreachable:
    return Unreachable(f"{request.url.copy_with(query=None)} gave no answer: {error or type(error).__name__}")


def _waits_s(patience_s: float) -> Iterator[float]:
    """The seconds of patience that are left, at each refusal."""
    until_s = time.monotonic() + patience_s
    while True:
        yield until_s - time.monotonic()


def _wait_s(response: httpx.Response, patience_left_s: Iterator[float]) -> float | None:
    """How long to wait before asking again; None when the response is to be taken as it is."""
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
    raise Refused(response.status_code, "unknown", f"HTTP {response.status_code}", "this is no answer of the gateway")
