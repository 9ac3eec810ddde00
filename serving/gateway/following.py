"""Finds the Tritons behind `--triton-url`, and learns what each serves.

A name, such as that of a service of Docker Compose or a headless one of Kubernetes, is looked up regularly, because
Tritons come and go. What a Triton serves is learnt over its connection, and forgotten when the connection ends or a
version disappears: a Triton that comes back may serve another version, with other preprocessing.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Sequence

from deit.errors import ServingError
from serving.gateway.models import discover_models
from serving.gateway.readiness import in_background
from serving.gateway.tritons import Triton, Tritons

logger = logging.getLogger(__name__)

LOOK_UP_EVERY_S = 1.0
LEARN_AGAIN_AFTER_S = 1.0

# A Triton whose address is gone from the name may still be answering requests.
GRACE_S = 30.0

FIRST_S = 30.0
"""How long the gateway waits at its start for a Triton that it has just found ready."""


@contextlib.asynccontextmanager
async def following(urls: Sequence[str], tritons: Tritons, shared_memory_key: str | None = None) -> AsyncIterator[None]:
    """Keep `tritons` up to date with these HOST:PORT while the block runs; it begins when one of them is known."""
    async with in_background(follow(urls, tritons, shared_memory_key)):
        with contextlib.suppress(TimeoutError):  # /readyz says so
            async with asyncio.timeout(FIRST_S):
                while not tritons.models():
                    await tritons.change()
        yield


async def follow(urls: Sequence[str], tritons: Tritons, shared_memory_key: str | None) -> None:
    """Look for Tritons until cancelled."""
    known: dict[str, asyncio.Task[None]] = {}
    async with asyncio.TaskGroup() as group:
        while True:
            found = await look_up(urls)
            for url in found - known.keys():
                known[url] = group.create_task(learn(url, tritons, shared_memory_key))
            for url in known.keys() - found if found else ():  # a name server that fails ends nothing
                known.pop(url).cancel()
            await asyncio.sleep(LOOK_UP_EVERY_S)


async def look_up(urls: Sequence[str]) -> set[str]:
    """HOST:PORT of each address of these names; those of a name that cannot be looked up are left out."""
    found = set()
    for url in urls:
        host, _, port = url.rpartition(":")
        try:
            addresses = await asyncio.get_running_loop().getaddrinfo(
                host.strip("[]"), int(port), type=socket.SOCK_STREAM
            )
        except OSError as error:
            logger.debug("the name %s cannot be looked up: %s", host, error)
            continue
        ips = (str(address[0]) for *_, address in addresses)
        found |= {f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}" for ip in ips}
    return found


async def learn(url: str, tritons: Tritons, shared_memory_key: str | None) -> None:
    """Keep track of what the Triton at this address serves, until cancelled."""
    triton = Triton(url, shared_memory_key=shared_memory_key)

    def give_up_waiting() -> None:
        triton.is_learning = False
        tritons.notify()

    tritons.add(triton)
    try:
        while True:
            try:
                async with in_background(triton.readiness.watch()):
                    while True:
                        await triton.client.connected(give_up_waiting)
                        await learn_once(triton, tritons, give_up_waiting)
            except Exception:  # whatever one Triton answers, the gateway keeps following all of them
                logger.exception("the Triton at %s cannot be followed; trying again", triton.url)
                await asyncio.sleep(LEARN_AGAIN_AFTER_S)
    finally:
        tritons.remove(triton)
        await triton.client.close(GRACE_S)


async def learn_once(triton: Triton, tritons: Tritons, give_up: Callable[[], None]) -> None:
    """Learn what it serves, and return when that is no longer valid."""
    ended = asyncio.ensure_future(triton.client.disconnected())
    try:
        triton.is_learning = True
        try:
            found = await asyncio.to_thread(discover_models, triton.url)
        except ServingError as error:
            if triton.trouble != str(error):
                triton.trouble = str(error)
                logger.error("%s; it is not used until this is resolved", error)
            give_up()
            await asyncio.wait([ended], timeout=LEARN_AGAIN_AFTER_S)
            return
        if ended.done():  # another process may have answered
            return
        triton.is_learning, triton.trouble = False, None
        triton.learn(found.models, found.broken)
        tritons.notify()
        served = ", ".join(f"{model.name} {' '.join(model.versions)}" for model in found.models.values())
        logger.info("the Triton at %s serves %s", triton.url, served)
        forgotten = asyncio.ensure_future(triton.forgotten.wait())
        await asyncio.wait([ended, forgotten], return_when=asyncio.FIRST_COMPLETED)
        forgotten.cancel()
        logger.info("asking the Triton at %s again what it serves", triton.url)
    finally:
        ended.cancel()
        triton.is_learning = True  # until it cannot be reached: a connection may end because of its age alone
        triton.forget()
        tritons.notify()
