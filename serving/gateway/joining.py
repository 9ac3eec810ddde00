"""Joins images that wait for the same model of the same Triton into one request.

Much of the cost of a call, in the gateway and in Triton, is the same for one image as for many, so under load images
share a call. A single image never waits: it is sent at once if no request to its model is in flight. Others wait until
a response comes, the request is full, or LONGEST_WAIT_S has passed.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial

from deit.preprocessing import Preprocessing
from serving.gateway.errors import DeadlineExceeded, Problem
from serving.gateway.jpegs import MOST_BYTES, Jpeg, LeftToGateway, ModelImage, bytes_of_files
from serving.gateway.models import ServedModel
from serving.gateway.triton_client import ModelOutput, TritonClient

LONGEST_WAIT_S = 0.001

IMAGES_ON_GPU = 32
"""Images in one request to a model on a GPU, unless --images-per-request says otherwise."""


@dataclass(frozen=True)
class Destination:
    """What the images of one request have in common.

    Attributes:
        kind: the shape of pixels, or what files are made into.
    """

    client: TritonClient
    model: str
    version: str
    kind: tuple[int, ...] | Preprocessing
    with_heads: bool


@dataclass(frozen=True, eq=False)
class WaitingImage:
    """Attributes:
    ends_s: its deadline, by `time.monotonic()`.
    headers: for gRPC.
    answer: cancelled when its caller has disconnected or its deadline has passed.
    """

    image: ModelImage
    ends_s: float
    request_id: str
    headers: Mapping[str, str]
    answer: asyncio.Future[ModelOutput]


@dataclass(eq=False)
class Traffic:
    """The images that wait for one destination, and the requests in flight to it."""

    waiting: list[WaitingImage] = field(default_factory=list)
    requests: set[asyncio.Task[None]] = field(default_factory=set)
    timer: asyncio.TimerHandle | None = None


class Joiner:
    """Sends images to models, several in one request. Belongs to the event loop.

    Args:
        images_per_request: most images in a request; None for the model's default.
        count: called with the model's name and the number of images of each request.
    """

    def __init__(self, images_per_request: int | None, count: Callable[[str, int], None]) -> None:
        self._images_per_request = images_per_request
        self._count = count
        self._traffic: dict[Destination, Traffic] = {}

    def limit(self, model: ServedModel) -> int:
        return min(self._images_per_request or (IMAGES_ON_GPU if model.is_on_gpu else 1), model.largest_batch)

    async def classify(
        self,
        client: TritonClient,
        model: ServedModel,
        image: ModelImage,
        *,
        version: str,
        timeout_s: float,
        request_id: str,
        with_heads: bool,
        headers: Mapping[str, str],
    ) -> ModelOutput:
        """As `TritonClient.classify`, with the same arguments and errors.

        For a request of several images Triton gets their latest deadline, the id of the first, and the first headers.
        """
        if (limit := self.limit(model)) == 1:
            self._count(model.name, 1)
            return await client.classify(
                model.name,
                image,
                version=version,
                timeout_s=timeout_s,
                request_id=request_id,
                with_heads=with_heads,
                headers=headers,
            )
        if timeout_s <= 0:
            raise DeadlineExceeded("no time was left for the model")
        loop = asyncio.get_running_loop()
        kind = image.preprocessing if isinstance(image, Jpeg) else image.shape
        destination = Destination(client, model.name, version, kind, with_heads)
        traffic = self._traffic.setdefault(destination, Traffic())
        if bytes_of_files([*(each.image for each in traffic.waiting), image]) > MOST_BYTES:
            self._send_waiting(destination, traffic)
        waiting = WaitingImage(image, time.monotonic() + timeout_s, request_id, headers, loop.create_future())
        traffic.waiting.append(waiting)
        if not traffic.requests or len(traffic.waiting) >= limit:
            self._send_waiting(destination, traffic)
        elif traffic.timer is None:
            traffic.timer = loop.call_later(LONGEST_WAIT_S, self._send_waiting, destination, traffic)
        try:
            async with asyncio.timeout(timeout_s):
                return await waiting.answer
        except TimeoutError as error:
            raise DeadlineExceeded("the model did not answer in time") from error

    def _send_waiting(self, destination: Destination, traffic: Traffic) -> None:
        if traffic.timer is not None:
            traffic.timer.cancel()
            traffic.timer = None
        images = [image for image in traffic.waiting if not image.answer.done()]
        traffic.waiting.clear()
        if images:
            request = asyncio.create_task(self._send(destination, images))
            traffic.requests.add(request)
            request.add_done_callback(partial(self._end, destination, traffic))
            for image in images:
                image.answer.add_done_callback(partial(_give_up_when_all_left, request, images))

    async def _send(self, destination: Destination, images: list[WaitingImage]) -> None:
        self._count(destination.model, len(images))
        answers: Sequence[ModelOutput | Exception]
        try:
            answers = await destination.client.ask(
                destination.model,
                [image.image for image in images],
                version=destination.version,
                timeout_s=max(image.ends_s for image in images) - time.monotonic(),
                request_id=images[0].request_id,
                with_heads=destination.with_heads,
                headers=next((image.headers for image in images if image.headers), None),
            )
        except (Problem, LeftToGateway) as problem:
            answers = [copy(problem) for _ in images]  # each gets its own Retry-After
        except Exception as error:
            answers = [error for _ in images]
        for image, answer in zip(images, answers, strict=True):
            if image.answer.done():
                continue
            if isinstance(answer, ModelOutput):
                image.answer.set_result(answer)
            else:
                image.answer.set_exception(answer)

    def _end(self, destination: Destination, traffic: Traffic, request: asyncio.Task[None]) -> None:
        traffic.requests.discard(request)
        if not traffic.requests:
            self._send_waiting(destination, traffic)
        if not traffic.requests:
            del self._traffic[destination]


def _give_up_when_all_left(
    request: asyncio.Task[None], images: list[WaitingImage], left: asyncio.Future[object]
) -> None:
    """Cancel a request when all callers of its images have left, so that Triton drops it."""
    if left.cancelled() and all(image.answer.done() for image in images):
        request.cancel()
