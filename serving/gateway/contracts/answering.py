"""Shared by the contracts: classifies a request's images, within the limits of /classify."""

import asyncio
from collections.abc import Sequence

from fastapi import Request

from serving.gateway.admission import IMAGES_AT_ONCE, Ticket
from serving.gateway.classification import AnsweredImage
from serving.gateway.deadline import Deadline
from serving.gateway.errors import MalformedRequest, Problem
from serving.gateway.question import Question
from serving.gateway.record import record_of
from serving.gateway.state import gateway_state
from serving.gateway.uploads import ReadyPixels, Upload
from serving.gateway.waiting import gather, while_client_waits


async def answers(
    request: Request, images: Sequence[Upload | ReadyPixels], question: Question, deadline: Deadline
) -> list[AnsweredImage]:
    """The model's answer for each image, in order.

    Raises:
        Problem: an image is refused, and with it the request: these contracts have no error for a single image.
    """
    gateway, record = gateway_state(request), record_of(request.scope)
    if not images:
        raise MalformedRequest("the request does not contain an image")
    gateway.tritons.raise_if_lost(question.model)
    record.model = question.model
    ticket: Ticket = request.state.ticket
    expected = [image.pixels_to_expect(gateway.limits.max_image_pixels) for image in images]
    ticket.begin(expected)
    turns = asyncio.Semaphore(IMAGES_AT_ONCE)

    async def answer(index: int) -> AnsweredImage:
        async with turns:
            with ticket.image(expected[index]):
                return await gateway.classifier.output(images[index], question, deadline=deadline, record=record)

    async def answer_all() -> list[AnsweredImage]:
        if len(images) == 1:
            return [await answer(0)]
        try:
            return await gather(*map(answer, range(len(images))))
        except ExceptionGroup as group:
            problems, others = group.split(Problem)
            if problems is None or others is not None:
                raise
            raise problems.exceptions[0] from None

    return await while_client_waits(request, answer_all())


def check_count(count: int, max_images: int) -> None:
    """Call before pictures are created. Raises MalformedRequest."""
    if count > max_images:
        raise MalformedRequest(f"the request has {count} images; the limit is {max_images}")
