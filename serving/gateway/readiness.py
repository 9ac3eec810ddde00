"""Whether a Triton can answer: every model has answered recently.

Triton's own health says "ready" while the process that runs a model is dead (Triton before 25.12), and a stopped Triton
does not reply, so each model that has not answered a request recently is probed with a small inference. A model that
fails is lost: requests for it are refused until it answers again, and waiting ones are cancelled.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Coroutine, Iterable

import numpy as np

from serving.gateway.errors import DeadlineExceeded, NotReady, Overloaded, Problem
from serving.gateway.models import ServedModel
from serving.gateway.triton_client import TritonClient, VersionChanged

logger = logging.getLogger(__name__)

# Silence is found after PROBE_EVERY_S + LOOK_EVERY_S + the probe's timeout: 2.75 s.
PROBE_EVERY_S = 1.0
LOOK_EVERY_S = 0.25
PROBE_TIMEOUT_S = 1.5

# A model that takes long for a batch is not silent: the timeout is at least this many of its usual answers.
USUAL_ANSWERS = 4
LONGEST_PROBE_TIMEOUT_S = 15.0

# A full queue may refuse the probe; the model is still ready as long as it answers requests.
LONGEST_SILENCE_S = 15.0

# A dead stub stays dead (Triton from 24.06 to 25.11 does not start another); a silent one may be busy or paused.
LOSS_ENDS_S = 1.5
SILENCE_ENDS_S = 8.0


@contextlib.asynccontextmanager
async def in_background(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Runs the work while the block runs."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


class Readiness:
    """Probes the models in the background.

    Args:
        probe_timeout_s: shortest time that a model is given to answer.
    """

    def __init__(
        self, client: TritonClient, models: Iterable[ServedModel], *, probe_timeout_s: float = PROBE_TIMEOUT_S
    ) -> None:
        self._client = client
        self._probe_timeout_s = probe_timeout_s
        self._models = {model.name: model for model in models}
        self._failures: dict[str, Problem] = {}
        self._lost_since_s: dict[str, float] = {}
        self._silent: set[str] = set()

    def replace(self, models: Iterable[ServedModel]) -> None:
        """Probe these models from now on. Findings about those that stay hold until they are probed again."""
        self._models = {model.name: model for model in models}
        for name in self._failures.keys() - self._models.keys():
            del self._failures[name]
            self._lost_since_s.pop(name, None)

    def findings(self) -> list[str]:
        """What is wrong, a sentence per model; empty while all is well."""
        return [f"{name}: {problem.detail}" for name, problem in self._failures.items()]

    def is_settled(self) -> bool:
        """Whether Triton has loaded what it can: each model answers, or is absent."""
        return all(isinstance(problem, VersionChanged) for problem in self._failures.values())

    def answers(self, model: str) -> bool:
        """Whether the model answered the last time."""
        return model not in self._failures

    def beyond_hope(self) -> str | None:
        """Why Triton must be restarted, or None: a model has been lost for too long to come back by itself.

        A model that Triton could not load does not affect the others.
        """
        others_answer = len(self._failures) < len(self._models)
        for name, since_s in self._lost_since_s.items():
            if others_answer and isinstance(self._failures[name], VersionChanged):
                continue
            lost_s = time.monotonic() - since_s
            if lost_s > (SILENCE_ENDS_S if name in self._silent else LOSS_ENDS_S):
                return f"{name}: {self._failures[name].detail}, {lost_s:.0f} s ago"
        return None

    def lose_all(self, reason: str, *, may_return: bool) -> None:
        """Mark all models as lost, without probing: Triton has ended or is stopped."""
        for name in self._models:
            if may_return:
                self._silent.add(name)
            self._lose(name, NotReady(reason))

    async def watch(self) -> None:
        """Probe forever."""
        while True:
            await self.ask()
            await asyncio.sleep(LOOK_EVERY_S)

    async def ask(self) -> None:
        """Probe each model once, except those that have just answered a request."""
        due = [model for model in self._models.values() if self._is_due(model)]
        await asyncio.gather(*map(self._ask_model, due))

    def _is_due(self, model: ServedModel) -> bool:
        return model.name in self._failures or self._since_success_s(model) > PROBE_EVERY_S

    def _since_success_s(self, model: ServedModel) -> float:
        """Seconds since the served version answered; a candidate's answers do not count."""
        return self._client.since_success_s(model.name, model.version)

    async def _ask_model(self, model: ServedModel) -> None:
        blank = np.zeros(model.input_shape, np.uint8)
        usual_s = USUAL_ANSWERS * self._client.usual_answer_s(model.name)
        timeout_s = min(LONGEST_PROBE_TIMEOUT_S, max(self._probe_timeout_s, usual_s))
        asked_s = time.monotonic()
        try:
            await self._client.classify(
                model.name, blank, version=model.version, timeout_s=timeout_s, request_id="probe"
            )
        except DeadlineExceeded:
            if self._since_success_s(model) >= time.monotonic() - asked_s:
                self._silent.add(model.name)
                self._lose(model.name, NotReady(f"no answer for {timeout_s:.1f} s"))
        except Overloaded:
            if self._since_success_s(model) > LONGEST_SILENCE_S:
                self._silent.add(model.name)
                self._lose(model.name, NotReady(f"no answer for {LONGEST_SILENCE_S:.0f} s"))
        except Problem as problem:
            self._silent.discard(model.name)
            self._lose(model.name, problem)
        else:
            self._lost_since_s.pop(model.name, None)
            if self._failures.pop(model.name, None) is not None:
                logger.info("the model %s answers again", model.name)

    def _lose(self, name: str, problem: Problem) -> None:
        if name not in self._failures:
            logger.error("the model %s does not answer: %s", name, problem)
        self._failures[name] = problem
        if isinstance(problem, NotReady):  # a model that answers nonsense is loaded
            self._lost_since_s.setdefault(name, time.monotonic())
            self._client.abandon(name)
