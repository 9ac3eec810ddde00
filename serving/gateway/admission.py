"""How much work the gateway accepts: an early refusal costs almost nothing, and what is admitted is answered soon.

Three quantities are limited: bytes of request bodies (memory), megapixels (decoding time and memory) and images. The
limit on images is not a setting: it grows while images are answered within `max_wait_s` and shrinks when they are not,
so it adapts to the machine and the model. Large images have a separate limit: they queue for each other, while one
decoder stays free for small ones. Retry-After is the backlog divided by the measured rate.
"""

import asyncio
import logging
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from serving.gateway.errors import Draining, Overloaded
from serving.settings.limits import Limits

logger = logging.getLogger(__name__)

LARGE_PIXELS = 4_000_000
"""From this size on an image is large: it may have to wait, or be refused, so that others need not."""

# Of one request, so that a form with many images leaves room for others.
IMAGES_AT_ONCE = 8

FIRST_IMAGE_LIMIT = 64.0
MIN_IMAGE_LIMIT = 4.0
MAX_IMAGE_LIMIT = 4096.0

# The limit doubles in about seven times max_wait_s while it is used and all is well, and falls to half at most at once.
# It must grow slowly, because how long an image takes is known only when it is done.
GROWTH_PER_IMAGE = 0.1
DEEPEST_CUT = 0.5

# Of max_wait_s: what takes longer lets the limit stand. The slowest images must keep within max_wait_s, not
# the median: when the limit grew up to max_wait_s itself, one image of a hundred took twice as long.
GROWTH_BELOW = 0.6

BUSY = 0.75
"""Share of the limit of images: with more in flight, work that no caller waits for is dropped."""

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
        """Account for the time since the last call. Call it before anything that changes whether there is work."""
        elapsed_s, self._last_s = now_s - self._last_s, now_s
        if was_busy:
            decay = math.exp(-elapsed_s / RATE_MEMORY_S)
            self._finished *= decay
            self._busy_s = self._busy_s * decay + elapsed_s

    def finish(self, units: float) -> None:
        self._finished += units

    def per_second(self) -> float | None:
        """None until something has finished."""
        return self._finished / self._busy_s if self._finished and self._busy_s else None


class Lane:
    """Images of one size class: how many are in flight, their limit, and how fast they are answered."""

    def __init__(self, max_wait_s: float) -> None:
        self._max_wait_s = max_wait_s
        self.images = self.pixels = 0
        self.limit = FIRST_IMAGE_LIMIT
        self._last_cut_s = -math.inf
        self._image_rate, self._pixel_rate = ServiceRate(), ServiceRate()

    @property
    def is_full(self) -> bool:
        return self.images >= int(self.limit)

    def change(self, images: int, pixels: int) -> None:
        """Take places, or give them back."""
        self._advance()
        self.images += images
        self.pixels += pixels

    def finish(self, pixels: int, took_s: float) -> None:
        """An image was answered."""
        self._advance()
        self._image_rate.finish(1)
        self._pixel_rate.finish(pixels)
        self._adapt(took_s)

    def wait_s(self) -> float:
        """Seconds until the images in flight are done, at the recently measured rate; 1 before the first
        measurement."""
        self._advance()
        backlogs = ((self.images, self._image_rate.per_second()), (self.pixels, self._pixel_rate.per_second()))
        return max((backlog / rate for backlog, rate in backlogs if rate), default=1)

    def _advance(self) -> None:
        now_s = time.monotonic()
        self._image_rate.advance(now_s, was_busy=self.images > 0)
        self._pixel_rate.advance(now_s, was_busy=self.pixels > 0)

    def _adapt(self, took_s: float) -> None:
        """Adapt the limit to how long an image took from its turn to its answer."""
        if took_s <= self._max_wait_s:
            is_used = self.images >= 0.8 * self.limit  # else nothing shows that more would be well too
            if is_used and took_s <= GROWTH_BELOW * self._max_wait_s:
                self.limit = min(MAX_IMAGE_LIMIT, self.limit + GROWTH_PER_IMAGE)
        elif time.monotonic() - self._last_cut_s > took_s:  # those in flight came under the old limit
            self._last_cut_s = time.monotonic()
            base = min(self.limit, max(MIN_IMAGE_LIMIT, self.images))
            self.limit = max(MIN_IMAGE_LIMIT, base * max(DEEPEST_CUT, self._max_wait_s / took_s))


class Admission:
    """Counts what is in flight and refuses what would be too much. Belongs to the event loop."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._bytes = 0
        self._small, self._large = Lane(limits.max_wait_s), Lane(limits.max_wait_s)
        self._tickets: set[Ticket] = set()
        self.is_stopping = False
        self._is_closed = False

    @property
    def images_in_flight(self) -> int:
        return self._small.images + self._large.images

    @property
    def has_room(self) -> bool:
        """Whether there is room for background work: the limits are not close."""
        near = any(lane.images >= BUSY * lane.limit for lane in (self._small, self._large))
        return not (near or self.is_stopping)

    @property
    def image_limit(self) -> int:
        """The limit on small images."""
        return int(self._small.limit)

    def stop(self) -> None:
        """Report in /readyz that the server is stopping. Requests that still arrive are admitted."""
        self.is_stopping = True

    def close(self) -> None:
        """Admit nothing more; requests in flight continue."""
        self._is_closed = True

    def admit(self, declared_bytes: int | None) -> "Ticket":
        """Admit a request by its header. A body of undeclared length counts as the largest.

        Only bytes that have arrived count, so declared lengths alone cannot fill the limit.

        Raises:
            Draining, Overloaded
        """
        if self._is_closed:
            raise Draining("the server is shutting down; retry on another")
        self._check_bytes(self._limits.max_body_bytes if declared_bytes is None else declared_bytes)
        self._check_images(self._small)
        ticket = Ticket(self)
        self._tickets.add(ticket)
        return ticket

    async def drained(self) -> None:
        """Return when all requests that are now in flight have been answered; new ones may arrive meanwhile."""
        earlier = set(self._tickets)
        while earlier & self._tickets:
            await asyncio.sleep(DRAIN_POLL_S)

    def retry_after_s(self) -> int:
        """Seconds until the small images that are in flight are done."""
        return self._whole_seconds(self._small.wait_s())

    def _check_bytes(self, more: int) -> None:
        if self._bytes and self._bytes + more > self._limits.max_in_flight_bytes:
            raise self._overloaded(f"bodies of {self._bytes / 2**20:.0f} MiB are in flight", self._small)

    def _check_images(self, lane: Lane) -> None:
        if lane.is_full:
            kind = "large images" if lane is self._large else "images"
            raise self._overloaded(f"{lane.images} {kind} are in flight", lane)

    def _overloaded(self, found: str, lane: Lane) -> Overloaded:
        return Overloaded(f"{found}, which is the limit now", retry_after_s=self._whole_seconds(lane.wait_s()))

    def _whole_seconds(self, seconds: float) -> int:
        return max(1, min(LONGEST_RETRY_AFTER_S, math.ceil(round(seconds, 3))))


class Ticket:
    """What one admitted request holds, until `release`."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._bytes = 0
        self._places: list[tuple[Lane, int, int]] = []

    def arrive(self, count: int) -> None:
        """Count bytes of the body that have arrived.

        Raises:
            Overloaded: the bodies in flight have too many; drop this one.
        """
        if self._admission._bytes > self._bytes:  # a body alone is let in whatever its size
            self._admission._check_bytes(count)
        self._admission._bytes += count
        self._bytes += count

    def begin(self, pixels: Sequence[int]) -> None:
        """Take places for the images of the request, once they have arrived; `pixels` is what each declares.

        Raises:
            Overloaded: the limit on images or megapixels is reached.
        """
        admission = self._admission
        small, large = admission._small, admission._large
        places = []
        for lane, its in (
            (small, [each for each in pixels if each < LARGE_PIXELS]),
            (large, [each for each in pixels if each >= LARGE_PIXELS]),
        ):
            if its:
                admission._check_images(lane)
                places.append((lane, min(len(its), IMAGES_AT_ONCE), sum(sorted(its)[-IMAGES_AT_ONCE:])))
        in_flight = small.pixels + large.pixels
        more = sum(at_once for _, _, at_once in places)
        if in_flight and in_flight + more > admission._limits.max_in_flight_pixels and places[-1][0] is large:
            raise admission._overloaded(f"images of {in_flight / 1e6:.0f} megapixels are in flight", large)
        self._places = places
        for lane, images, at_once in places:
            lane.change(images, at_once)

    @contextmanager
    def image(self, pixels: int) -> Iterator[None]:
        """Around the work for one image; measures it when it succeeds."""
        started_s = time.monotonic()
        yield
        lane = self._admission._large if pixels >= LARGE_PIXELS else self._admission._small
        lane.finish(pixels, time.monotonic() - started_s)

    def release(self) -> None:
        admission = self._admission
        admission._tickets.discard(self)
        admission._bytes -= self._bytes
        for lane, images, at_once in self._places:
            lane.change(-images, -at_once)
        self._bytes, self._places = 0, []
