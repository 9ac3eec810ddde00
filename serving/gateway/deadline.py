"""One deadline for a request, from its first byte to its response; every stage gets the time that is left."""

import math
import time
from dataclasses import dataclass

from serving.gateway.errors import InvalidParameter

HEADER = "X-Request-Timeout-Ms"


@dataclass(frozen=True)
class Deadline:
    """Attributes:
    allowed_s: the total time for the request.
    at_s: when it ends, by `time.monotonic()`.
    """

    allowed_s: float
    at_s: float

    def remaining_s(self) -> float:
        """Seconds left, 0 when it has passed."""
        return max(0.0, self.at_s - time.monotonic())


def request_deadline(given_ms: str | None, *, longest_s: float, started_s: float) -> Deadline:
    """The deadline of a request that began at `started_s`: what the caller gave in HEADER, at most `longest_s`.

    Raises:
        InvalidParameter: the header is not a number of milliseconds.
    """
    allowed_s = longest_s
    if given_ms is not None:
        if not (given_ms.isascii() and given_ms.isdecimal() and int(given_ms[:10]) > 0):
            raise InvalidParameter(f"{HEADER} is {given_ms[:40]!r}; send a whole number of milliseconds above 0")
        allowed_s = min(longest_s, math.inf if len(given_ms) > 10 else int(given_ms) / 1000)
    return Deadline(allowed_s=allowed_s, at_s=started_s + allowed_s)
