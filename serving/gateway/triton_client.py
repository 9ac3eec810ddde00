"""Asks Triton for probabilities, and says in the gateway's terms what went wrong when it gives none.

Each image is a request of its own; Triton's dynamic batching joins them. Nothing is sent twice: a repetition of what
was refused makes an overload worse.
"""

import logging
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from deit.model import PROBABILITIES
from serving.gateway.errors import DeadlineExceeded, Internal, NotReady, Overloaded, Problem
from serving.gateway.models import infer_input
from serving.triton.connection import CHANNEL_OPTIONS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """Attributes:
    version: of the model that gave the answer.
    probabilities: float32 (classes,).
    """

    version: str
    probabilities: npt.NDArray[np.float32]


class TritonClient:
    """One gRPC channel; belongs to one event loop and is made in it."""

    def __init__(self, url: str) -> None:
        self._client = InferenceServerClient(url, channel_args=CHANNEL_OPTIONS)
        self._last_success_s: dict[str, float] = {}

    async def close(self) -> None:
        await self._client.close()

    def since_success_s(self, model: str) -> float:
        """Seconds since the model last answered; infinite when it never did."""
        return time.monotonic() - self._last_success_s.get(model, float("-inf"))

    async def classify(
        self, model: str, pixels: npt.NDArray[np.uint8], *, timeout_s: float, request_id: str = ""
    ) -> Answer:
        """Probabilities of one image, uint8 (H, W, 3).

        Args:
            timeout_s: after it the call ends here, and Triton drops the request if it is still queued there.

        Raises:
            Overloaded, NotReady, DeadlineExceeded, Internal
        """
        if timeout_s <= 0:
            raise DeadlineExceeded("no time was left for the model")
        try:
            result = await self._client.infer(
                model,
                [infer_input(pixels[np.newaxis])],
                outputs=[InferRequestedOutput(PROBABILITIES)],
                request_id=request_id,
                timeout=int(timeout_s * 1e6),  # microseconds, for Triton's queue
                client_timeout=timeout_s,  # seconds, for gRPC
            )
        except InferenceServerException as error:
            problem = problem_of(error)
            if isinstance(problem, Internal):
                logger.error("inference by %s failed: %s %s", model, error.status(), error.message())
            raise problem from error
        probabilities = result.as_numpy(PROBABILITIES)[0]
        if not np.isfinite(probabilities).all():
            logger.error("the model %s gave probabilities that are not numbers; export it again", model)
            raise Internal("the model gave no usable answer")
        self._last_success_s[model] = time.monotonic()
        return Answer(version=result.get_response().model_version, probabilities=probabilities)


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
