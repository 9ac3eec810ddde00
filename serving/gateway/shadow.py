"""Compares a candidate's predictions with those that callers got, in spare time.

When the model has answered, the image goes to the candidate too. It waits in a short queue and does not count for
admission: while the server is busy, or when the queue is full, it is dropped. Its outcome never reaches a caller.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

import numpy as np

from serving.gateway.admission import Admission
from serving.gateway.errors import Problem
from serving.gateway.metrics import Metrics
from serving.gateway.models import ServedModel
from serving.gateway.triton_client import ModelOutput

logger = logging.getLogger(__name__)

AT_ONCE = 4
"""Enough for one batch on a CPU and for some hundred images a second on a GPU; the rest is for callers."""

MOST_WAITING = 64
MOST_WAITING_BYTES = 32 * 2**20


@dataclass(frozen=True, eq=False, kw_only=True)
class ShadowImage:
    """Attributes:
    bytes: memory that this holds while it waits.
    is_possible: checked when its turn comes.
    ask: the candidate's answer to the same image, and the seconds that the model took.
    """

    model: ServedModel
    answer: ModelOutput
    candidate: ServedModel
    bytes: int
    is_possible: Callable[[], bool]
    ask: Callable[[], Coroutine[None, None, tuple[ModelOutput, float]]]


class Shadow:
    """The comparisons in progress. Belongs to the event loop."""

    def __init__(self, admission: Admission, metrics: Metrics) -> None:
        self._admission = admission
        self._metrics = metrics
        self._waiting: deque[ShadowImage] = deque()
        self._waiting_bytes = 0
        self._under_way: set[asyncio.Task[None]] = set()

    def begin(self, image: ShadowImage) -> None:
        """Returns at once."""
        if len(self._under_way) < AT_ONCE:
            self._start(image)
        elif len(self._waiting) < MOST_WAITING and self._waiting_bytes + image.bytes <= MOST_WAITING_BYTES:
            self._waiting.append(image)
            self._waiting_bytes += image.bytes
        else:
            self._count(image, "dropped")

    def close(self) -> None:
        """Cancel the comparisons in progress."""
        self._waiting.clear()
        for task in self._under_way:
            task.cancel()

    def _start(self, image: ShadowImage) -> None:
        if not (self._admission.has_room and image.is_possible()):
            self._count(image, "dropped")
            return
        task = asyncio.create_task(self._compare(image))
        self._under_way.add(task)
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        while self._waiting and len(self._under_way) < AT_ONCE:
            image = self._waiting.popleft()
            self._waiting_bytes -= image.bytes
            self._start(image)

    async def _compare(self, image: ShadowImage) -> None:
        try:
            found, seconds = await image.ask()
        except Problem:
            self._count(image, "failed")
            return
        except Exception:
            logger.exception("the shadow %s failed", image.candidate.name)
            self._count(image, "failed")
            return
        given = image.answer.probabilities
        self._count(image, "agrees" if found.probabilities.argmax() == given.argmax() else "differs")
        self._metrics.observe_shadow(
            image.model.name,
            image.candidate.name,
            found.version,
            difference=float(np.abs(found.probabilities - given).max()),
            seconds=seconds,
        )

    def _count(self, image: ShadowImage, outcome: str) -> None:
        self._metrics.count_shadow(
            image.model.name,
            image.answer.version,
            image.candidate.name,
            image.candidate.version,
            outcome,
        )
