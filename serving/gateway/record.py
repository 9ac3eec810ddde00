"""The facts about a request, collected as it is handled, then counted and logged in one place (middleware.py)."""

from collections import defaultdict
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from starlette.types import Scope

from serving.gateway.tracing import RequestTrace


@dataclass(frozen=True)
class ImageRecord:
    """An image that was answered.

    Attributes:
        version: of the model that answered.
        stages_s: seconds by stage: waiting for a decoder, decoding, preprocessing, the model.
        best_label: the most probable class; "others" for one of very many.
        heads_agree: whether both heads have the same most probable class; None if they were not requested.
    """

    version: str
    stages_s: dict[str, float]
    best_label: str
    confidence: float
    heads_agree: bool | None = None


@dataclass(frozen=True)
class CanaryRecord:
    """Attributes:
    model: the one that the caller requested.
    candidate: the model to answer instead, perhaps another version of the same.
    answers: whether the candidate was available.
    """

    model: str
    candidate: str
    answers: bool


@dataclass
class RequestRecord:
    """Attributes:
    started_s: when its header was complete, by `time.monotonic()`; its deadline counts from there.
    root_path: the path under which a proxy exposes this server; "" for its root.
    client: the address that it came from.
    canary: set for a request in the share of one.
    receive_s: from `started_s` until the body was complete.
    problems: names of what was refused: the request, or some of its images.
    trace: its spans, if tracing is on.
    """

    request_id: str
    started_s: float
    root_path: str = ""
    client: str = ""
    key_name: str | None = None
    model: str = ""
    canary: CanaryRecord | None = None
    receive_s: float | None = None
    images: list[ImageRecord] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    trace: RequestTrace | None = None

    def trace_stages(self, stages_s: Mapping[str, float]) -> None:
        """Spans for stages of an image that have just ended."""
        if self.trace is not None:
            self.trace.stages(stages_s)

    def model_call(self, model: str) -> AbstractContextManager[dict[str, str]]:
        """Around a call to Triton: a span, and the headers by which Triton continues the trace."""
        return nullcontext({}) if self.trace is None else self.trace.model_call(model)

    def stages_s(self) -> dict[str, float]:
        """Seconds by stage, summed over the images."""
        total: defaultdict[str, float] = defaultdict(float)
        if self.receive_s is not None:
            total["receive"] = self.receive_s
        for image in self.images:
            for stage, seconds in image.stages_s.items():
                total[stage] += seconds
        return total

    def server_timing(self) -> str:
        """The value of the header Server-Timing (W3C), in milliseconds."""
        return ", ".join(f"{stage};dur={seconds * 1000:.1f}" for stage, seconds in self.stages_s().items())

    def headers(self) -> dict[str, str]:
        """Headers of the response: the model, its version if all images had the same one, and the time by stage."""
        headers = {"X-Model": self.model, "Server-Timing": self.server_timing()}
        versions = {image.version for image in self.images}
        return headers | ({"X-Model-Version": versions.pop()} if len(versions) == 1 else {})


def record_of(scope: Scope) -> RequestRecord:
    record: RequestRecord = scope["state"]["record"]
    return record
