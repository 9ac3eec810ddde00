"""What a request asks for, for each of its images."""

from dataclasses import dataclass

from serving.gateway.models import ServedModel


@dataclass(frozen=True, kw_only=True)
class Question:
    """Checked against the requested model.

    Attributes:
        version: None for the newest of the Triton that answers.
        abstains: from images unlike those that the model knows.
        explainer: the model that explains it, for explanation and embedding.
        shadow: candidate whose answers are compared with the model's, after the caller has them.
        is_canary: `model` is the canary of the model that the caller requested.
    """

    model: str
    version: str | None
    top_k: int
    min_probability: float | None
    with_heads: bool
    with_pixels: bool
    abstains: bool = False
    explainer: str | None = None
    with_explanation: bool = False
    with_embedding: bool = False
    shadow: ServedModel | None = None
    is_canary: bool = False
