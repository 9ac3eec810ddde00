"""Gets probabilities from Triton, and turns its errors into the gateway's problems.

A request carries one image, or several that joining.py put together; Triton's dynamic batching joins requests. Each
request names the version that its pixels were made for, so no other version can answer it.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from grpc import ChannelConnectivity
from grpc.aio import AioRpcError, insecure_channel
from tritonclient.grpc.service_pb2 import ModelInferResponse

from deit.jpeg_step import DECODED
from deit.model import CLASS_PROBABILITIES, DISTILLATION_PROBABILITIES, PROBABILITIES
from serving.gateway.connection import CHANNEL_OPTIONS
from serving.gateway.errors import DeadlineExceeded, Internal, NotReady, Overloaded, Problem
from serving.gateway.jpegs import Jpeg, LeftToGateway, ModelImage
from serving.gateway.model_request import request_for, with_images
from serving.gateway.shared_pixels import Place, SharedPixels

logger = logging.getLogger(__name__)

READY = ChannelConnectivity.READY

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"

UNKNOWN_REGION = "Unable to find shared memory region"
"""Triton's words for a region that was registered with an earlier process of it."""

Probabilities = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ModelOutput:
    """Attributes:
    version: of the model that gave the answer.
    probabilities: float32 (classes,).
    heads: those of the class head and of the distillation head, when they were asked for.
    """

    version: str
    probabilities: Probabilities
    heads: tuple[Probabilities, Probabilities] | None = None


class VersionChanged(NotReady):
    """This Triton does not serve the requested version (any more)."""


class UnknownRegion(Exception):
    """Triton does not know the shared memory that the request names."""


class TritonClient:
    """One gRPC channel to one Triton; belongs to one event loop and is made in it.

    It writes the messages itself, which copies the pixels once. tritonclient's generated stub copies them three times
    and takes 0.07 ms more for each image of 224 x 224 pixels, a twentieth of the gateway's time for an image;
    tritonclient's own client takes another 0.07 ms.

    Args:
        on_version_changed: called when Triton does not serve a version that was asked for.
        shared_memory_key: the key for registering shared memory with Triton; None to send pixels in the requests.
    """

    def __init__(
        self, url: str, on_version_changed: Callable[[], None] = lambda: None, *, shared_memory_key: str | None = None
    ) -> None:
        self._channel = insecure_channel(url, options=CHANNEL_OPTIONS)
        self._shared = None if shared_memory_key is None else SharedPixels(self._channel, shared_memory_key)
        self._on_version_changed = on_version_changed
        self._infer = self._channel.unary_unary(
            MODEL_INFER, request_serializer=None, response_deserializer=ModelInferResponse.FromString
        )
        self._last_success_s: dict[tuple[str, str], float] = {}
        self._usual_answer_s: dict[str, float] = {}
        self._calls: defaultdict[str, set[Any]] = defaultdict(set)

    async def close(self, grace_s: float | None = None) -> None:
        """Calls in progress have `grace_s` to end."""
        if self._shared is not None:
            await self._shared.close()
        await self._channel.close(grace_s)

    @property
    def is_connected(self) -> bool:
        return self._channel.get_state() is READY

    async def connected(self, on_failure: Callable[[], None]) -> None:
        """Return when there is a connection; `on_failure` is called after each failed attempt."""
        while (state := self._channel.get_state(try_to_connect=True)) is not READY:
            if state is ChannelConnectivity.TRANSIENT_FAILURE:
                on_failure()
            await self._channel.wait_for_state_change(state)

    async def disconnected(self) -> None:
        """Return when the current connection has ended, even if there is another one by then."""
        await self._channel.wait_for_state_change(READY)

    def since_success_s(self, model: str, version: str) -> float:
        """Seconds since this version of the model last answered; infinite when it never did."""
        return time.monotonic() - self._last_success_s.get((model, version), float("-inf"))

    def usual_answer_s(self, model: str) -> float:
        """Seconds that the model took for its latest answers; 0 before the first."""
        return self._usual_answer_s.get(model, 0.0)

    def abandon(self, model: str) -> None:
        """Cancel every call that waits for this model, with NotReady."""
        for call in self._calls[model]:
            call.cancel()

    async def classify(
        self,
        model: str,
        image: ModelImage,
        *,
        version: str,
        timeout_s: float,
        request_id: str = "",
        with_heads: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> ModelOutput:
        """Probabilities of one image; otherwise as `ask`.

        Raises:
            Overloaded, NotReady, VersionChanged, DeadlineExceeded, Internal, LeftToGateway
        """
        (answer,) = await self.ask(
            model,
            [image],
            version=version,
            timeout_s=timeout_s,
            request_id=request_id,
            with_heads=with_heads,
            headers=headers,
        )
        if isinstance(answer, ModelOutput):
            return answer
        raise answer

    async def ask(
        self,
        model: str,
        images: Sequence[ModelImage],
        *,
        version: str,
        timeout_s: float,
        request_id: str = "",
        with_heads: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> list[ModelOutput | Problem | LeftToGateway]:
        """The answer for each image in one request, or what is wrong with it.

        Args:
            images: all of one shape, or files with the same preprocessing.
            version: the one that the pixels were made for; no other answers.
            timeout_s: the call ends after this time, and Triton drops the request if it is still queued there.
            headers: for gRPC, such as `traceparent`.

        Raises:
            Overloaded, NotReady, VersionChanged, DeadlineExceeded, Internal: no image got an answer.
            LeftToGateway: no file got one, and the model may be well.
        """
        outputs = (PROBABILITIES, *((CLASS_PROBABILITIES, DISTILLATION_PROBABILITIES) if with_heads else ()))
        asked_s = time.monotonic()
        try:
            response = await self.call(
                model, images, outputs, version=version, timeout_s=timeout_s, request_id=request_id, headers=headers
            )
        except (NotReady, Internal) as problem:
            if isinstance(images[0], Jpeg):  # who asks again, with pixels, learns whether it is the model
                raise LeftToGateway(str(problem)) from problem
            raise
        answers = answers_of(response, len(images), with_heads)
        if any(isinstance(answer, Problem) for answer in answers):
            logger.error("the model %s returned probabilities that are not numbers; export it again", model)
        else:
            now_s = time.monotonic()
            self._last_success_s[model, version] = now_s
            before_s = self._usual_answer_s.get(model, now_s - asked_s)
            self._usual_answer_s[model] = 0.9 * before_s + 0.1 * (now_s - asked_s)
        return answers

    async def call(
        self,
        model: str,
        images: Sequence[ModelImage],
        outputs: tuple[str, ...],
        *,
        version: str,
        timeout_s: float,
        request_id: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> ModelInferResponse:
        """These outputs of one request, unchecked; arguments and errors as in `ask`."""
        if timeout_s <= 0:
            raise DeadlineExceeded("no time was left for the model")
        request = request_for(model, version, images, outputs)
        request.id = request_id
        request.parameters["timeout"].int64_param = int(timeout_s * 1e6)  # microseconds, for Triton's queue
        pixels = [each for each in images if not isinstance(each, Jpeg)]
        place = None if self._shared is None or not pixels else self._shared.put(pixels)
        if place is not None:
            try:
                response = await self._send(model, place.named_in(request), timeout_s, headers, place)
            except UnknownRegion:  # Triton has been started again
                request.inputs[0].ClearField("parameters")
                place = None
        if place is None:
            response = await self._send(model, with_images(request, images), timeout_s, headers, None)
        if isinstance(images[0], Jpeg):  # the version of decode_jpegs says nothing
            response.model_version = version
        if response.model_version != version:
            self._on_version_changed()
            raise VersionChanged(f"version {response.model_version} answered for version {version}")
        return response

    async def _send(
        self, model: str, message: bytes, timeout_s: float, headers: Mapping[str, str] | None, place: Place | None
    ) -> ModelInferResponse:
        """The answer to a serialised request.

        Args:
            place: where its pixels are, to be released after it; None if it carries them.

        Raises:
            UnknownRegion: Triton does not know the place.
        """
        call = self._infer(message, timeout=timeout_s, metadata=tuple((headers or {}).items()))
        self._calls[model].add(call)
        is_read = False
        try:
            response = await call
            is_read = True
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():  # the request was, and with it the call
                raise
            raise NotReady("the model stopped answering") from error
        except AioRpcError as error:
            if UNKNOWN_REGION in (error.details() or ""):
                raise UnknownRegion from error
            problem = problem_of(error, model)
            if isinstance(problem, VersionChanged):
                self._on_version_changed()
            is_read = isinstance(problem, Overloaded)  # refused at once
            raise problem from error
        finally:
            self._calls[model].discard(call)
            if place is not None and self._shared is not None:
                self._shared.release(place, is_read=is_read)
        return response


def answers_of(
    response: ModelInferResponse, count: int, with_heads: bool
) -> list[ModelOutput | Problem | LeftToGateway]:
    """The answer for each of the `count` images of the request."""
    names = (output.name for output in response.outputs)
    contents = dict(zip(names, response.raw_output_contents, strict=True))
    is_decoded = np.frombuffer(contents.pop(DECODED, bytes([True]) * count), np.bool_)
    outputs = {name: np.frombuffer(content, np.float32).reshape(count, -1) for name, content in contents.items()}
    usable = np.logical_and.reduce([np.isfinite(rows).all(axis=1) for rows in outputs.values()])
    return [
        LeftToGateway("Triton did not decode it")
        if not is_decoded[row]
        else ModelOutput(
            version=response.model_version,
            probabilities=outputs[PROBABILITIES][row],
            heads=(outputs[CLASS_PROBABILITIES][row], outputs[DISTILLATION_PROBABILITIES][row]) if with_heads else None,
        )
        if usable[row]
        else Internal("the model did not return a usable result")
        for row in range(count)
    ]


def problem_of(error: AioRpcError, model: str) -> Problem:
    """Triton's error by gRPC code and text (server: `src/grpc/grpc_utils.cc`, core: `src/scheduler_utils.cc`)."""
    status, message = error.code().name, error.details() or ""
    if status == "DEADLINE_EXCEEDED" or "Request timeout expired" in message:
        return DeadlineExceeded("the model did not answer in time")
    if "Exceeds maximum queue size" in message:
        return Overloaded("the queue of the model is full")
    if "unknown model" in message:
        return VersionChanged("the version of the model that was asked for is not loaded")
    if status in ("UNAVAILABLE", "NOT_FOUND", "CANCELLED") or "is not healthy" in message:
        return NotReady("the model cannot be reached")
    logger.error("inference by %s failed: %s %s", model, status, message)
    return Internal("the model failed")
