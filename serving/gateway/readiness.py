"""Whether the gateway can answer: every model gave an answer of late.

Triton's own health says "ready" while the process that runs a model is dead (Triton before 25.12), so a small inference
asks each model that no request has asked meanwhile.
"""

import asyncio
import logging
from collections.abc import Iterable

import numpy as np

from serving.gateway.errors import DeadlineExceeded, Overloaded, Problem
from serving.gateway.models import ServedModel
from serving.gateway.triton_client import TritonClient

logger = logging.getLogger(__name__)

CANARY_EVERY_S = 2.0
CANARY_TIMEOUT_S = 2.0

# A busy model may refuse the canary and is still ready, for as long as it answers somebody.
LONGEST_SILENCE_S = 15.0


class Readiness:
    """Asks the models in the background; `findings` is empty while all is well."""

    def __init__(self, client: TritonClient, models: Iterable[ServedModel]) -> None:
        self._client = client
        self._models = list(models)
        self._failures: dict[str, str] = {}

    def findings(self) -> list[str]:
        """What is wrong, a sentence a model."""
        silent = {
            model.name: f"no answer for {LONGEST_SILENCE_S:.0f} s"
            for model in self._models
            if self._client.since_success_s(model.name) > LONGEST_SILENCE_S
        }
        return [f"{name}: {reason}" for name, reason in {**silent, **self._failures}.items()]

    async def watch(self) -> None:
        """Ask for ever; a task of the application."""
        while True:
            await self.ask()
            await asyncio.sleep(CANARY_EVERY_S)

    async def ask(self) -> None:
        """Ask each model once, except those that have just answered a request."""
        due = [model for model in self._models if self._is_due(model.name)]
        await asyncio.gather(*map(self._ask_model, due))

    def _is_due(self, name: str) -> bool:
        return name in self._failures or self._client.since_success_s(name) > CANARY_EVERY_S

    async def _ask_model(self, model: ServedModel) -> None:
        size = model.preprocessing.image_size
        blank = np.zeros((size, size, 3), np.uint8)
        try:
            await self._client.classify(model.name, blank, timeout_s=CANARY_TIMEOUT_S, request_id="canary")
        except (Overloaded, DeadlineExceeded) as problem:
            logger.debug("canary of %s: %s", model.name, problem)
        except Problem as problem:
            if model.name not in self._failures:
                logger.error("the model %s does not answer: %s", model.name, problem)
            self._failures[model.name] = problem.detail
        else:
            if self._failures.pop(model.name, None) is not None:
                logger.info("the model %s answers again", model.name)
