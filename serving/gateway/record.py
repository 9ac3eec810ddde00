"""What is known of a request when it ends: filled on its way, counted and logged in one place (middleware.py)."""

from collections import defaultdict
from dataclasses import dataclass, field

from starlette.types import Scope


@dataclass(frozen=True)
class ImageRecord:
    """An image that was answered.

    Attributes:
        version: of the model that answered.
        stages_s: seconds by stage: waiting for a decoder, decoding, preprocessing, the model.
    """

    version: str
    stages_s: dict[str, float]


@dataclass
class RequestRecord:
    """Attributes:
    started_s: when its header was complete, by `time.monotonic()`; its deadline counts from there.
    key_name: whose key it bore.
    receive_s: from `started_s` until the body was complete.
    problems: names of what was refused: the request, or some of its images.
    """

    request_id: str
    started_s: float
    key_name: str | None = None
    model: str = ""
    receive_s: float | None = None
    images: list[ImageRecord] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

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


def record_of(scope: Scope) -> RequestRecord:
    record: RequestRecord = scope["state"]["record"]
    return record
