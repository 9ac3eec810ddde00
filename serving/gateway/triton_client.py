"""Asks Triton for probabilities, and says in the gateway's terms what went wrong when it gives none.

Each image is a request of its own; Triton's dynamic batching joins them. Nothing is sent twice: a repetition of what
was refused makes an overload worse.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from deit.model import CLASS_PROBABILITIES, DISTILLATION_PROBABILITIES, PROBABILITIES
from serving.gateway.errors import DeadlineExceeded, Internal, NotReady, Overloaded, Problem
from serving.gateway.models import infer_input
from serving.triton.connection import CHANNEL_OPTIONS

logger = logging.getLogger(__name__)


Probabilities = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Answer:
    """Attributes:
    version: of the model that gave the answer.
    probabilities: float32 (classes,).
    heads: those of the class head and of the distillation head, when they were asked for.
    """

    version: str
    probabilities: Probabilities
    heads: tuple[Probabilities, Probabilities] | None = None


class TritonClient:
    """One gRPC channel; belongs to one event loop and is made in it."""

    def __init__(self, url: str) -> None:
        self._client = InferenceServerClient(url, channel_args=CHANNEL_OPTIONS)
        self._last_success_s: dict[str, float] = {}
        self._usual_answer_s: dict[str, float] = {}
        self._calls: defaultdict[str, set[asyncio.Task[Any]]] = defaultdict(set)

    async def close(self) -> None:
        await self._client.close()

    def since_success_s(self, model: str) -> float:
        """Seconds since the model last answered; infinite when it never did."""
        return time.monotonic() - self._last_success_s.get(model, float("-inf"))

    def usual_answer_s(self, model: str) -> float:
        """Seconds that the model took for its latest answers; 0 before the first."""
        return self._usual_answer_s.get(model, 0.0)

    def abandon(self, model: str) -> None:
        """Give up every call that waits for this model: it ends with NotReady."""
        for call in self._calls[model]:
            call.cancel()

    async def classify(
        self,
        model: str,
        pixels: npt.NDArray[np.uint8],
        *,
        timeout_s: float,
        request_id: str = "",
        version: str = "",
        with_heads: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Probabilities of one image, uint8 (H, W, 3).

        Args:
            timeout_s: after it the call ends here, and Triton drops the request if it is still queued there.
            version: empty for the newest.
            headers: for gRPC, such as `traceparent`.

        Raises:
            Overloaded, NotReady, DeadlineExceeded, Internal
        """
        if timeout_s <= 0:
            raise DeadlineExceeded("no time was left for the model")
        outputs = [PROBABILITIES, *((CLASS_PROBABILITIES, DISTILLATION_PROBABILITIES) if with_heads else ())]
        asked_s = time.monotonic()
        call = asyncio.ensure_future(
            self._client.infer(
                model,
                [infer_input(pixels[np.newaxis])],
                model_version=version,
                outputs=[InferRequestedOutput(name) for name in outputs],
                request_id=request_id,
                timeout=int(timeout_s * 1e6),  # microseconds, for Triton's queue
                client_timeout=timeout_s,  # seconds, for gRPC
                headers=headers,
            )
        )
        self._calls[model].add(call)
        call.add_done_callback(self._calls[model].discard)
        try:
            result = await call
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # the request was, and with it the call
                raise
            raise NotReady("the model stopped answering") from error
        except InferenceServerException as error:
            problem = problem_of(error)
            if isinstance(problem, Internal):
                logger.error("inference by %s failed: %s %s", model, error.status(), error.message())
            raise problem from error
        probabilities, *heads = (result.as_numpy(name)[0] for name in outputs)
        if not all(np.isfinite(row).all() for row in (probabilities, *heads)):
            logger.error("the model %s gave probabilities that are not numbers; export it again", model)
            raise Internal("the model gave no usable answer")
        now_s = time.monotonic()
        self._last_success_s[model] = now_s
        before_s = self._usual_answer_s.get(model, now_s - asked_s)
        self._usual_answer_s[model] = 0.9 * before_s + 0.1 * (now_s - asked_s)
        return Answer(
            version=result.get_response().model_version,
            probabilities=probabilities,
            heads=(heads[0], heads[1]) if heads else None,
        )


def problem_of(error: InferenceServerException) -> Problem:
    """Triton's error by gRPC code and text (server: `src/grpc/grpc_utils.cc`, core: `src/scheduler_utils.cc`)."""
    status, message = str(error.status()).removeprefix("StatusCode."), error.message() or ""
    if status == "DEADLINE_EXCEEDED" or "Request timeout expired" in message:
        return DeadlineExceeded("the model did not answer in time")
    if "Exceeds maximum queue size" in message:
        return Overloaded("the queue of the model is full")
    if status in ("UNAVAILABLE", "NOT_FOUND", "CANCELLED") or "is not healthy" in message:
        return NotReady("the model cannot be reached")
    return Internal("the model failed")
