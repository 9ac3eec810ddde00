"""What a server answers to a client, and what can go wrong instead."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deit.errors import DeitError


class ClientError(DeitError):
    """The server gave no answer."""


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
class Classification:
    """Attributes:
    predictions: best first; empty when the model abstained (`min_probability`, `abstain`).
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


def _predictions(listed: list[dict[str, Any]]) -> tuple[Prediction, ...]:
    return tuple(Prediction(**each) for each in listed)
