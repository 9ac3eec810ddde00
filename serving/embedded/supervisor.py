"""Starts the embedded Triton again when it dies or hangs, with growing pauses, and gives up after too many in a row."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from deit.errors import ServingError
from serving.embedded.embedded import EmbeddedTriton
from serving.gateway.readiness import Readiness, in_background

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.1

# The first restart comes at once: a lone crash should cost no more than loading the models.
SECOND_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0

STEADY_S = 60.0
"""After this long without trouble, the next failure counts as the first."""


class Supervisor:
    """Belongs to the main thread, from which Triton must be started."""

    def __init__(self, triton: EmbeddedTriton, *, most_restarts: int, start_timeout_s: float) -> None:
        self._triton = triton
        self._most_restarts = most_restarts
        self._start_timeout_s = start_timeout_s
        self.failure: ServingError | None = None

    @asynccontextmanager
    async def watching(self, readiness: Readiness) -> AsyncIterator[None]:
        """Watch while the block runs."""
        async with in_background(self.watch(readiness)):
            yield

    async def watch(self, readiness: Readiness) -> None:
        """Return when Triton failed too often; `failure` tells why."""
        restarts = 0
        while True:
            steady_since_s = time.monotonic()
            reason = await self._trouble(readiness)
            if time.monotonic() - steady_since_s > STEADY_S:
                restarts = 0
            if restarts >= self._most_restarts:
                times = f", after {restarts} restarts in a row" if restarts else ""
                self.failure = ServingError(f"{reason}{times}")
                return
            pause_s = min(LONGEST_PAUSE_S, SECOND_PAUSE_S * 2 ** (restarts - 1)) if restarts else 0.0
            restarts += 1
            logger.error(
                "%s; starting Triton again in %.0f s (%d of at most %d in a row)",
                *(reason, pause_s, restarts, self._most_restarts),
            )
            await asyncio.sleep(pause_s)
            self._triton.restart()
            await self._start(readiness)

    async def _trouble(self, readiness: Readiness) -> str:
        """Return when Triton has ended or a model is beyond hope; why."""
        while True:
            if self._triton.process.has_ended:
                readiness.lose_all("Triton has ended", may_return=False)  # first: waiting requests end with it
                return await asyncio.to_thread(self._triton.process.end_reason) or "Triton has ended"
            if (ailment := self._triton.process.ailment()) is not None:
                readiness.lose_all(ailment.reason, may_return=ailment.may_pass)
                if not ailment.may_pass:
                    return ailment.reason
            if (reason := readiness.beyond_hope()) is not None:
                return f"Triton runs, but a model does not: {reason}"
            await asyncio.sleep(LOOK_EVERY_S)

    async def _start(self, readiness: Readiness) -> None:
        """Return when every model answers, or when it is clear that this start failed too."""
        started_s = time.monotonic()
        while not self._triton.process.has_ended and time.monotonic() - started_s < self._start_timeout_s:
            if not readiness.findings():
                logger.info("Triton is ready again after %.1f s", time.monotonic() - started_s)
                return
            await asyncio.sleep(LOOK_EVERY_S)
