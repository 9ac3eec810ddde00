"""The results that the clients return, and the errors that they raise."""

import base64
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from deit.errors import DeitError

T = TypeVar("T")


class ClientError(DeitError):
    """The server did not give an answer."""


class Unreachable(ClientError):
    """Nothing listens there, or the connection broke."""


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
    """Each head's own predictions, best first; the divergence is in bits."""

    class_head: tuple[Prediction, ...]
    distillation_head: tuple[Prediction, ...]
    agree: bool
    jensen_shannon_divergence: float


@dataclass(frozen=True)
class Tokens(Generic[T]):
    """A value for each token; a model with one head has only the class token."""

    class_token: T
    distillation_token: T | None


@dataclass(frozen=True)
class Classification:
    """All but the first four are None unless the request asked for them.

    Attributes:
        predictions: best first; empty when the model abstained.
        abstained: no class was probable enough (`min_probability`), or the picture is unfamiliar (`abstain`).
        explanation: PNG files, heat maps of where each token looked.
        embedding: features of each token, as its head reads them.
        pixels: a PNG file, the picture as the model read it.
    """

    model: str
    version: str
    predictions: tuple[Prediction, ...]
    abstained: bool
    heads: Heads | None
    explanation: Tokens[bytes] | None
    embedding: Tokens[tuple[float, ...]] | None
    pixels: bytes | None

    @property
    def best(self) -> Prediction | None:
        return self.predictions[0] if self.predictions else None

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "Classification":
        heads, pixels = body.get("heads"), body.get("pixels")
        return cls(
            model=body["model"],
            version=body["version"],
            predictions=_predictions(body["predictions"]),
            abstained=body.get("abstained", False),
            heads=heads
            and Heads(
                class_head=_predictions(heads["class"]),
                distillation_head=_predictions(heads["distillation"]),
                agree=heads["agree"],
                jensen_shannon_divergence=heads["jensen_shannon_divergence"],
            ),
            explanation=_tokens(body.get("explanation"), _png),
            embedding=_tokens(body.get("embedding"), _features),
            pixels=pixels and _png(pixels),
        )


def _predictions(listed: list[dict[str, Any]]) -> tuple[Prediction, ...]:
    return tuple(Prediction(**each) for each in listed)


def _tokens(texts: Mapping[str, str] | None, read: Callable[[str], T]) -> Tokens[T] | None:
    if texts is None:
        return None
    distillation = texts.get("distillation")
    return Tokens(read(texts["class"]), None if distillation is None else read(distillation))


def _png(data_url: str) -> bytes:
    return base64.b64decode(data_url.partition(",")[2])


def _features(text: str) -> tuple[float, ...]:
    return tuple(value for (value,) in struct.iter_unpack("<f", base64.b64decode(text)))
