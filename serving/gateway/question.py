"""What a request wants to know of each of its images."""

from dataclasses import dataclass

from serving.gateway.models import ServedModel


@dataclass(frozen=True, kw_only=True)
class Question:
    """Checked against the model that was asked for.

    Attributes:
        model: its name.
        version: None for the newest of the Triton that answers.
        shadow: whose answers are compared with the model's, after the caller has them.
        is_canary: what is asked for is the canary of the model that the caller meant.
    """

    model: str
    version: str | None
    top_k: int
    min_probability: float | None
    with_heads: bool
    with_pixels: bool
    shadow: ServedModel | None = None
    is_canary: bool = False
