"""The Tritons behind the gateway: what each serves, and which one is next.

They may differ: while new versions are rolled out, one Triton serves the old version and another the new one. So an
image is preprocessed for the version that one Triton serves, and goes only to a Triton with exactly that version.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping

from serving.gateway.errors import NotReady
from serving.gateway.models import ServedModel
from serving.gateway.readiness import Readiness
from serving.gateway.triton_client import TritonClient

# Learning takes some hundredths of a second, unless the models are busy.
LEARNING_S = 1.0


class Triton:
    """One Triton and the connection to it. Belongs to the event loop.

    Args:
        fixed: what it serves, if the gateway's own process decides that; None if it has to be learnt.
        shared_memory_key: as of TritonClient.

    Attributes:
        models: what it serves, by name; empty while that is unknown, when it gets no requests.
        broken: why it could not load a model, by name.
        is_learning: it can be reached, and what it serves is being asked.
        trouble: why learning failed the last time.
        forgotten: set when what was learnt is no longer valid.
    """

    def __init__(
        self,
        url: str,
        fixed: Mapping[str, ServedModel] | None = None,
        broken: Mapping[str, str] | None = None,
        *,
        shared_memory_key: str | None = None,
    ) -> None:
        self.url = url
        self.models: Mapping[str, ServedModel] = {} if fixed is None else fixed
        self.broken: Mapping[str, str] = broken or {}
        self.is_learning = False
        self.trouble: str | None = None
        self.forgotten = asyncio.Event()
        self.client = TritonClient(url, on_version_changed=self.forget, shared_memory_key=shared_memory_key)
        self.readiness = Readiness(self.client, self.models.values())
        self._is_fixed = fixed is not None

    def learn(self, models: Mapping[str, ServedModel], broken: Mapping[str, str]) -> None:
        self.models, self.broken = models, broken
        self.forgotten.clear()
        self.readiness.replace(models.values())

    def forget(self) -> None:
        """Send it no requests until what it serves has been learnt again."""
        if not self._is_fixed:
            self.models = {}
            self.readiness.replace(())
            self.forgotten.set()

    def answers(self, name: str) -> bool:
        """Whether it serves a model of this name that has answered recently."""
        return (
            name in self.models
            and self.readiness.answers(name)
            # What was learnt is valid for one connection: behind the next one may be another process.
            and (self._is_fixed or self.client.is_connected)
        )


class Tritons:
    """All Tritons, used in turn.

    Args:
        on_change: called with what is served whenever that has changed.
    """

    def __init__(self, on_change: Callable[[Mapping[str, ServedModel]], None], *members: Triton) -> None:
        self._on_change = on_change
        self._members = list(members)
        self._turn = 0
        self._changed = asyncio.Event()

    def __iter__(self) -> Iterator[Triton]:
        return iter(self._members)

    def add(self, triton: Triton) -> None:
        self._members.append(triton)

    def remove(self, triton: Triton) -> None:
        self._members.remove(triton)
        self.notify()

    async def change(self) -> None:
        """Return when what one of them serves has changed."""
        await self._changed.wait()

    def notify(self) -> None:
        """What one of them serves has changed."""
        self._changed.set()
        self._changed = asyncio.Event()
        self._on_change(self.models())

    def models(self) -> Mapping[str, ServedModel]:
        """What is served, by name, sorted; where Tritons differ, the newest version."""
        if len(self._members) == 1:
            return self._members[0].models
        found: dict[str, ServedModel] = {}
        for triton in self._members:
            for name, model in triton.models.items():
                if name not in found or int(model.version) > int(found[name].version):
                    found[name] = model
        return dict(sorted(found.items()))

    def versions(self, name: str) -> list[str]:
        """The versions of a model, oldest first, whichever Triton serves them."""
        served = [triton.models[name] for triton in self._members if name in triton.models]
        served += [model.other for model in served if model.other is not None]
        return sorted({version for model in served for version in model.versions}, key=int)

    def broken(self) -> dict[str, str]:
        """Models that a Triton could not load, or that do not return probabilities there, with the reason."""
        return {
            name: why for triton in self._members for name, why in triton.broken.items() if name not in triton.models
        }

    def answering(self) -> int:
        """Number of Tritons that can answer."""
        return sum(any(map(triton.answers, triton.models)) for triton in self._members)

    def findings(self) -> list[str]:
        """Which models cannot answer, and why, one sentence each; empty if all can."""
        served = self.models()
        if not served:
            return [self._nothing_served()]
        lost = [name for name in served if not any(triton.answers(name) for triton in self._members)]
        said = {finding for triton in self._members for finding in triton.readiness.findings()}
        return [next((each for each in said if each.startswith(f"{name}: ")), f"{name}: not reached") for name in lost]

    async def model(self, name: str, version: str | None, *, besides: Triton | None = None) -> ServedModel:
        """The model, in this version if one is named, as the Triton whose turn it is serves it.

        Args:
            besides: a Triton that has just failed.

        Raises:
            NotReady: no Triton serves it now.
        """
        try:
            async with asyncio.timeout(LEARNING_S):
                while True:
                    for triton in self._in_turn():
                        if triton is besides or not triton.answers(name):
                            continue
                        if (model := triton.models[name].served(version)) is not None:
                            return model
                    if not any(triton.is_learning for triton in self._members):
                        break
                    await self.change()
        except TimeoutError:
            pass
        raise NotReady(self.why_not(name))

    def pick(self, model: ServedModel, *, besides: Triton | None = None) -> Triton | None:
        """The next Triton among those that serve exactly this; None if none does any more."""
        in_turn = self._in_turn()
        self._turn += 1
        for triton in in_turn:
            if triton is besides or not triton.answers(model.name):
                continue
            if triton.models[model.name].served(model.version) == model:
                return triton
        return None

    def answering_model(self, name: str, version: str | None) -> ServedModel | None:
        """The model, in this version if one is named, if it can answer right now."""
        for triton in self._members:
            if triton.answers(name) and (model := triton.models[name].served(version)) is not None:
                return model
        return None

    def raise_if_lost(self, name: str) -> None:
        """Raises NotReady when no Triton can answer for the model, now or in a moment."""
        if not any(triton.answers(name) or triton.is_learning for triton in self._members):
            raise NotReady(self.why_not(name))

    def _in_turn(self) -> list[Triton]:
        first = self._turn % max(1, len(self._members))
        return self._members[first:] + self._members[:first]

    def why_not(self, name: str) -> str:
        """Why no Triton can answer for the model, in words for the caller."""
        if name in self.broken():
            return f"the model {name} could not be loaded; the server's log says why"
        return f"the model {name} is not answering" if self.models() else self._nothing_served()

    def _nothing_served(self) -> str:
        if any(triton.is_learning for triton in self._members):
            return "the gateway is asking Triton again what it serves"
        return "Triton cannot be reached"
