"""Reloads the model repository while it is served: loads versions, checks them and switches to them, and no request
fails.

The old versions keep serving until the new ones have answered; then requests go to the new ones, and the old ones are
unloaded once their last request is done. A version that does not load, or does not return probabilities, is refused,
and nothing changes.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from deit.errors import DeitError, ServingError
from deit.model import PROBABILITIES
from serving.embedded.control import Reply, control_server
from serving.embedded.snapshot import Offer
from serving.embedded.triton import EmbeddedTriton
from serving.gateway.admission import Admission
from serving.gateway.connection import connect
from serving.gateway.metrics import Metrics
from serving.gateway.models import FIRST_INFERENCE_TIMEOUT_S, ServedModel, infer_input, read_model
from serving.gateway.readiness import Readiness

logger = logging.getLogger(__name__)

LOAD_TIMEOUT_S = 300.0
"""A large model may have to build an engine."""

# float32 sums of up to 21,841 classes
SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Change:
    """The outcome for one model; `versions` are served now, `reason` says why the new ones are not."""

    model: str
    outcome: Literal["loaded", "unchanged", "removed", "refused"]
    versions: tuple[str, ...] = ()
    reason: str | None = None


@dataclass(eq=False, repr=False)
class Reloader:
    """Belongs to the event loop of the gateway, whose `models` it changes in place.

    Args:
        control_path: of the socket for commands.
    """

    triton: EmbeddedTriton
    url: str
    models: dict[str, ServedModel]
    default_model: str
    metrics: Metrics
    admission: Admission
    control_path: Path
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    _unloading: set[asyncio.Task[None]] = field(default_factory=set, init=False)

    @asynccontextmanager
    async def commands(self, readiness: Readiness) -> AsyncIterator[None]:
        """Takes commands while the block runs."""

        async def answer(command: str) -> Reply:
            if command != "reload":
                return {"error": f"unknown command {command[:40]!r}"}
            try:
                return {"changes": [asdict(change) for change in await self.reload(readiness)]}
            except DeitError as error:
                return {"error": str(error)}

        async with control_server(self.control_path, answer):
            yield
        for task in self._unloading:
            task.cancel()

    async def reload(self, readiness: Readiness) -> list[Change]:
        """Serve what the repository offers now, model by model.

        Raises:
            RepositoryError, ServingError: the repository as a whole cannot be read; nothing has changed.
        """
        async with self._turn:
            if self._unloading:  # of the reload before
                await asyncio.gather(*self._unloading)
            offers = await asyncio.to_thread(self.triton.snapshot.offers)
            if self.default_model not in offers:
                raise ServingError(
                    f"the default model {self.default_model} is no longer in the repository; put it back, or start "
                    "again with another --default-model"
                )
            changes = [await self._follow(name, offer, readiness) for name, offer in offers.items()]
            changes += [self._remove(name, readiness) for name in sorted(self.triton.offers.keys() - offers.keys())]
            for change in changes:
                self.metrics.count_load(change.outcome)
                if change.outcome == "refused":
                    logger.error("the model %s is unchanged: %s", change.model, change.reason)
                elif change.outcome != "unchanged":
                    logger.info("%s the model %s %s", change.outcome, change.model, " ".join(change.versions))
            return changes

    async def _follow(self, name: str, offer: Offer, readiness: Readiness) -> Change:
        before = self.triton.offers.get(name)
        if offer == before:
            return Change(name, "unchanged", self._served(name))
        snapshot = self.triton.snapshot
        kept = tuple(version for version in (before.versions if before else ()) if snapshot.exists(name, version))
        try:
            both = tuple(sorted({*kept, *offer.versions}))
            model = await asyncio.to_thread(self._load_and_prove, name, offer, both)
        except (ServingError, InferenceServerException, OSError) as error:
            reason = error.message() if isinstance(error, InferenceServerException) else str(error)
            await asyncio.to_thread(self._restore, name, before)
            return Change(name, "refused", self._served(name), reason)
        self.triton.offers[name] = offer
        self._switch({**self.models, name: model}, readiness)
        if both != offer.versions:
            self._later(self._load, name, offer, offer.versions)
        return Change(name, "loaded", model.versions)

    def _remove(self, name: str, readiness: Readiness) -> Change:
        del self.triton.offers[name]
        self._switch({key: model for key, model in self.models.items() if key != name}, readiness)
        self._later(self._unload, name)
        return Change(name, "removed")

    def _served(self, name: str) -> tuple[str, ...]:
        """The versions that answer now; none of a model that is not one of ours."""
        return self.models[name].versions if name in self.models else ()

    def _switch(self, models: dict[str, ServedModel], readiness: Readiness) -> None:
        """Takes effect with the next request."""
        self.models.clear()
        self.models.update(sorted(models.items()))
        readiness.replace(self.models.values())
        self.metrics.show_models(self.models)

    def _later(self, action: Any, *arguments: Any) -> None:
        async def act() -> None:
            await self.admission.drained()
            try:
                await asyncio.to_thread(action, *arguments)
            except InferenceServerException as error:  # Triton is being started again, and will see what is right
                logger.warning("versions that are no longer served stay loaded: %s", error.message())

        task = asyncio.create_task(act())
        self._unloading.add(task)
        task.add_done_callback(self._unloading.discard)

    def _load_and_prove(self, name: str, offer: Offer, versions: tuple[int, ...]) -> ServedModel:
        self._load(name, offer, versions)
        with connect(self.url) as client:
            model = read_model(client, name, tuple(map(str, offer.versions)))
            if model is None:
                raise ServingError(f"the model {name} was not made by `deit export`; export it again")
            for version in model.versions:
                prove(client, model, version)
            if model.candidate is not None and model.candidate.model == name:
                if model.other is None:
                    raise ServingError(f"its {model.candidate} does not work as a classifier; the log says why")
                prove(client, model.other, model.other.version)
        return model

    def _restore(self, name: str, before: Offer | None) -> None:
        try:
            if before is None:
                self._unload(name)
            else:
                self._load(name, before, before.versions)
        except InferenceServerException as error:
            logger.error("the model %s could not be restored: %s", name, error.message())

    def _load(self, name: str, offer: Offer, versions: tuple[int, ...]) -> None:
        self.triton.snapshot.show(name, offer, versions)
        with connect(self.url) as client:
            client.load_model(name, headers=self.triton.control_headers, client_timeout=LOAD_TIMEOUT_S)

    def _unload(self, name: str) -> None:
        self.triton.snapshot.hide(name)
        with connect(self.url) as client:
            client.unload_model(name, headers=self.triton.control_headers, client_timeout=LOAD_TIMEOUT_S)


def prove(client: InferenceServerClient, model: ServedModel, version: str) -> None:
    """Raises ServingError if a version does not return probabilities for a grey image."""
    grey = np.full((1, *model.input_shape), 128, np.uint8)
    result = client.infer(
        model.name,
        [infer_input(grey)],
        model_version=version,
        outputs=[InferRequestedOutput(PROBABILITIES)],
        client_timeout=FIRST_INFERENCE_TIMEOUT_S,
    )
    row = result.as_numpy(PROBABILITIES)[0]
    if not np.isfinite(row).all() or row.min() < 0 or abs(row.sum() - 1) > SUM_TOLERANCE:
        raise ServingError(
            f"version {version} of the model {model.name} does not return probabilities: they add up to "
            f"{row.sum():g}; export it again"
        )
