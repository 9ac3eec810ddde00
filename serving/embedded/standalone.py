"""The embedded Triton alone, for a container of its own behind `deit serve --triton-url`.

It is watched as `deit serve` watches it. Triton's own health stays "ready" when the process that runs a model has died
(Triton from 24.06 to 25.11), so whatever is lost here ends the process, and the container's restart policy starts it
anew.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Mapping

import typer

from serving.embedded.embedded import EmbeddedTriton, embedded_triton
from serving.embedded.options import LOOPBACK
from serving.embedded.signals import StopSignal
from serving.embedded.supervisor import Supervisor
from serving.gateway.connection import wait_until_ready
from serving.gateway.models import ServedModel, discover_models
from serving.gateway.readiness import Readiness, in_background
from serving.gateway.tracing import traces_url
from serving.gateway.triton_client import TritonClient
from serving.settings import StandaloneSettings

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.1

BANNER = """
********************************************************************************
  This is the Triton of a Python package: version 2.51 of October 2024, without
  two years of security fixes. It listens on {address}.
  Keep it on a network that only the gateway can reach. For production there is
  NVIDIA's image, 26.07 or later: docs/deploy.md
********************************************************************************"""


def run_triton(settings: StandaloneSettings) -> None:
    """Return when a signal asked for the end.

    Raises:
        ServingError, RepositoryError: Triton cannot be started, or it or a model of it died or hangs.
    """
    stop = StopSignal()
    if settings.host != LOOPBACK:
        typer.echo(BANNER.format(address=f"{settings.host}:{settings.triton.ports.grpc}"), err=True)
    is_any = settings.host == "0.0.0.0"
    url = f"{LOOPBACK if is_any else settings.host}:{settings.triton.ports.grpc}"
    with (
        contextlib.suppress(KeyboardInterrupt),
        embedded_triton(
            settings.triton.model_repository,
            settings.triton.ports,
            host=settings.host,
            traces_url=traces_url(os.environ),
        ) as triton,
    ):

        def raise_if_in_vain() -> None:
            stop.raise_if_received()
            triton.process.raise_if_ended()

        wait_until_ready(url, timeout_s=settings.triton.start_timeout_s, raise_if_in_vain=raise_if_in_vain)
        asyncio.run(watch(triton, url, discover_models(url), stop, settings.triton.start_timeout_s))
    logger.info("stopped")


async def watch(
    triton: EmbeddedTriton, url: str, models: Mapping[str, ServedModel], stop: StopSignal, start_timeout_s: float
) -> None:
    """Return never: a signal raises KeyboardInterrupt, a loss ServingError."""
    client = TritonClient(url)
    readiness = Readiness(client, models.values())
    supervisor = Supervisor(triton, most_restarts=0, start_timeout_s=start_timeout_s)
    try:
        async with in_background(readiness.watch()), in_background(supervisor.watch(readiness)):
            while supervisor.failure is None:
                stop.raise_if_received()
                await asyncio.sleep(LOOK_EVERY_S)
        raise supervisor.failure
    finally:
        await client.close()
