"""Waits for a request's body and images, until its deadline or until its client disconnects."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from serving.gateway.deadline import HEADER, Deadline, request_deadline
from serving.gateway.errors import BodyTimeout
from serving.gateway.record import record_of
from serving.gateway.state import gateway_state

Done = TypeVar("Done")


def deadline_of(request: Request) -> Deadline:
    """Raises InvalidParameter."""
    longest_s, started_s = gateway_state(request).limits.request_timeout_s, record_of(request.scope).started_s
    return request_deadline(request.headers.get(HEADER), longest_s=longest_s, started_s=started_s)


async def received(request: Request, reading: Coroutine[Any, Any, Done], deadline: Deadline) -> Done:
    """The result of `reading` the body. Raises BodyTimeout."""
    record = record_of(request.scope)
    try:
        async with asyncio.timeout(deadline.remaining_s()):
            body = await reading
    except TimeoutError as error:
        raise BodyTimeout(f"the body was not complete after {deadline.allowed_s:g} s") from error
    record.receive_s = time.monotonic() - record.started_s
    return body


async def gather(*coroutines: Coroutine[Any, Any, Done]) -> list[Done]:
    """As asyncio.gather, but when one fails or this is cancelled, the others end too."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each) for each in coroutines]
    return [task.result() for task in tasks]


async def while_client_waits(request: Request, work: Coroutine[Any, Any, Done]) -> Done:
    """The outcome of `work`, which is cancelled, down to the call to Triton, if the client closes the connection.

    Raises:
        ClientDisconnect
    """
    working = asyncio.current_task()
    assert working is not None
    is_over = False

    def give_up(leaving: asyncio.Task[None]) -> None:
        if not is_over and not leaving.cancelled():
            working.cancel()

    leaving = asyncio.create_task(left(request))
    leaving.add_done_callback(give_up)
    try:
        return await work
    except asyncio.CancelledError:
        if (
            leaving.done() and working.uncancel() == 0
        ):  # as asyncio.timeout distinguishes its own cancelling from another's
            raise ClientDisconnect from None
        raise
    finally:
        is_over = True
        leaving.cancel()


async def left(request: Request) -> None:
    """Return when the client has closed the connection. The body has been read by then."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
