"""How much work the gateway takes on: a refusal at the door costs next to nothing, what is let in is answered soon.

Three quantities are in flight: bytes of bodies (memory), megapixels (decoding time and memory) and images. The limit of
images is not a setting: it grows while images are answered within `max_wait_s` and shrinks when they are not, so it
finds what this machine and this model can do. Retry-After is the backlog divided by the measured rate.
"""

import asyncio
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from serving.gateway.errors import Draining, Overloaded
from serving.settings import Limits

logger = logging.getLogger(__name__)

LARGE_PIXELS = 4_000_000
"""From here on an image is large: it may have to wait, or be refused, so that others need not."""

# Of one request, so that a form with many images leaves room for others.
IMAGES_AT_ONCE = 8

FIRST_IMAGE_LIMIT = 64.0
MIN_IMAGE_LIMIT = 4.0
MAX_IMAGE_LIMIT = 4096.0

# The limit doubles in about seven times max_wait_s while it is used and all is well, and falls to half at most at once.
# It must grow slowly, because how long an image takes is known only when it is done.
GROWTH_PER_IMAGE = 0.1
DEEPEST_CUT = 0.5

# Of max_wait_s: what takes longer lets the limit stand. It is the slowest images that shall keep within max_wait_s, not
# the median: when the limit grew up to max_wait_s itself, one image of a hundred took twice as long.
GROWTH_BELOW = 0.6

# Seconds of work after which a measurement counts 1/e. Idle time does not count.
RATE_MEMORY_S = 10.0

LONGEST_RETRY_AFTER_S = 60

DRAIN_POLL_S = 0.05


class ServiceRate:
    """Units finished per second while there was work."""

    def __init__(self) -> None:
        self._finished = 0.0
        self._busy_s = 0.0
        self._last_s = 0.0

    def advance(self, now_s: float, *, was_busy: bool) -> None:
        """Account for the time since the last call. To be called before whatever changes who is busy."""
        elapsed_s, self._last_s = now_s - self._last_s, now_s
        if was_busy:
            decay = math.exp(-elapsed_s / RATE_MEMORY_S)
            self._finished *= decay
            self._busy_s = self._busy_s * decay + elapsed_s

    def finish(self, units: float) -> None:
        self._finished += units

    def per_second(self) -> float | None:
        """None as long as nothing was finished."""
        return self._finished / self._busy_s if self._finished and self._busy_s else None


class Admission:
    """Counts what is in flight and refuses what would be too much. Belongs to the event loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._bytes = self._pixels = self._images = 0
        self._image_limit = FIRST_IMAGE_LIMIT
        self._last_cut_s = -math.inf
        self._image_rate, self._pixel_rate = ServiceRate(), ServiceRate()
        self._tickets: set[Ticket] = set()
        self.is_stopping = False
        self._is_closed = False

    @property
    def images_in_flight(self) -> int:
        return self._images

    @property
    def image_limit(self) -> int:
        return int(self._image_limit)

    def stop(self) -> None:
        """Say in /readyz that the end is near. Requests that are on their way are still let in."""
        self.is_stopping = True

    def close(self) -> None:
        """Take nothing on any more; what is in flight goes on."""
        self._is_closed = True

    def admit(self, declared_bytes: int | None) -> "Ticket":
        """Let a request in by its header. A body of undeclared length counts as the largest.

        Raises:
            Draining, Overloaded
        """
        if self._is_closed:
            raise Draining("the server is shutting down; another may answer")
        body_bytes = self._limits.max_body_bytes if declared_bytes is None else declared_bytes
        if self._bytes and self._bytes + body_bytes > self._limits.max_in_flight_bytes:
            raise self._overloaded(f"bodies of {self._bytes / 2**20:.0f} MiB are in flight")
        self._check_images()
        self._bytes += body_bytes
        ticket = Ticket(self, body_bytes)
        self._tickets.add(ticket)
        return ticket

    async def drained(self) -> None:
        """Return when every request that is in flight now has its answer; further ones may come meanwhile."""
        earlier = set(self._tickets)
        while earlier & self._tickets:
            await asyncio.sleep(DRAIN_POLL_S)

    def retry_after_s(self) -> int:
        """Seconds until what is in flight is done, at the rate measured lately."""
        self._advance()
        waits = [
            backlog / rate
            for backlog, rate in (
                (self._images, self._image_rate.per_second()),
                (self._pixels, self._pixel_rate.per_second()),
            )
            if rate
        ]
        return max(1, min(LONGEST_RETRY_AFTER_S, math.ceil(round(max(waits, default=1), 3))))

    def _check_images(self) -> None:
        if self._images >= int(self._image_limit):
            raise self._overloaded(f"{self._images} images are in flight")

    def _overloaded(self, found: str) -> Overloaded:
        return Overloaded(f"{found}, which is the limit now", retry_after_s=self.retry_after_s())

    def _advance(self) -> None:
        now_s = time.monotonic()
        self._image_rate.advance(now_s, was_busy=self._images > 0)
        self._pixel_rate.advance(now_s, was_busy=self._pixels > 0)

    def _adapt(self, took_s: float) -> None:
        """Move the limit by how long an image took from its turn to its answer."""
        if took_s <= self._limits.max_wait_s:
            is_used = self._images >= 0.8 * self._image_limit  # else nothing shows that more would be well too
            if is_used and took_s <= GROWTH_BELOW * self._limits.max_wait_s:
                self._image_limit = min(MAX_IMAGE_LIMIT, self._image_limit + GROWTH_PER_IMAGE)
        elif time.monotonic() - self._last_cut_s > took_s:  # those in flight came under the old limit
            self._last_cut_s = time.monotonic()
            base = min(self._image_limit, max(MIN_IMAGE_LIMIT, self._images))
            self._image_limit = max(MIN_IMAGE_LIMIT, base * max(DEEPEST_CUT, self._limits.max_wait_s / took_s))


class Ticket:
    """What one admitted request holds, until `release`."""

    def __init__(self, admission: Admission, body_bytes: int) -> None:
        self._admission = admission
        self._bytes = body_bytes
        self._images = self._pixels = 0

    def begin(self, pixels: Sequence[int]) -> None:
        """Take places for the images of the request, once they have arrived; `pixels` is what each declares.

        Raises:
            Overloaded: others came first.
        """
        admission = self._admission
        admission._check_images()
        at_once = sum(sorted(pixels)[-IMAGES_AT_ONCE:])
        is_full = admission._pixels > 0 and admission._pixels + at_once > admission._limits.max_in_flight_pixels
        if is_full and max(pixels) >= LARGE_PIXELS:  # a decoder stays free for smaller ones
            raise admission._overloaded(f"images of {admission._pixels / 1e6:.0f} megapixels are in flight")
        admission._advance()
        self._images, self._pixels = min(len(pixels), IMAGES_AT_ONCE), at_once
        admission._images += self._images
        admission._pixels += self._pixels

    @contextmanager
    def image(self, pixels: int) -> Iterator[None]:
        """Around the work for one image; measures it when it succeeds."""
        started_s = time.monotonic()
        yield
        admission = self._admission
        admission._advance()
        admission._image_rate.finish(1)
        admission._pixel_rate.finish(pixels)
        admission._adapt(time.monotonic() - started_s)

    def release(self) -> None:
        admission = self._admission
        admission._advance()
        admission._tickets.discard(self)
        admission._bytes -= self._bytes
        admission._images -= self._images
        admission._pixels -= self._pixels
        self._bytes = self._images = self._pixels = 0
