"""A shadow takes time that nobody else needs, and no more of it than it may."""

import asyncio

import numpy as np
import pytest

from serving.gateway.admission import FIRST_IMAGE_LIMIT, Admission
from serving.gateway.errors import NotReady
from serving.gateway.metrics import Metrics
from serving.gateway.shadow import AT_ONCE, MOST_WAITING, MOST_WAITING_BYTES, Shadow, ShadowImage
from serving.gateway.triton_client import ModelOutput
from serving.settings.limits import Limits
from tests.serving.gateway.test_tritons import MODEL

ANSWER = ModelOutput("1", np.array([0.75, 0.25], np.float32))
OTHER = ModelOutput("1", np.array([0.25, 0.75], np.float32))


class Scene:
    """A shadow next to an admission, with candidates that answer when they are let."""

    def __init__(self):
        self.admission = Admission(Limits())
        self.metrics = Metrics({}, self.admission)
        self.shadow = Shadow(self.admission, self.metrics)
        self.gate = asyncio.Event()
        self.asked = 0

    def begin(self, *, found=ANSWER, size=1000, is_possible=True):
        async def ask():
            self.asked += 1
            await self.gate.wait()
            if isinstance(found, Exception):
                raise found
            return found, 0.01

        self.shadow.begin(
            ShadowImage(
                model=MODEL, answer=ANSWER, candidate=MODEL, bytes=size, is_possible=lambda: is_possible, ask=ask
            )
        )

    def outcomes(self):
        return {
            sample.labels["outcome"]: sample.value
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if sample.name == "deit_shadow_images_total"
        }

    async def settle(self):
        for _ in range(2 * MOST_WAITING):
            await asyncio.sleep(0)


def scene(play):
    async def run():
        await play(Scene())

    asyncio.run(run())


def test_a_few_are_asked_at_once_some_wait_and_the_rest_is_dropped():
    async def play(scene):
        for _ in range(AT_ONCE + MOST_WAITING + 5):
            scene.begin()
        await scene.settle()
        assert scene.asked == AT_ONCE
        assert scene.outcomes() == {"dropped": 5}
        scene.gate.set()
        await scene.settle()
        assert scene.outcomes() == {"dropped": 5, "agrees": AT_ONCE + MOST_WAITING}

    scene(play)


def test_what_waits_holds_little_memory():
    async def play(scene):
        for _ in range(AT_ONCE):
            scene.begin()
        scene.begin(size=MOST_WAITING_BYTES)
        scene.begin()
        assert scene.outcomes() == {"dropped": 1}

    scene(play)


@pytest.mark.parametrize("close_to_the_limit", [True, False])
def test_a_shadow_yields_to_requests_when_its_turn_comes(close_to_the_limit):
    async def play(scene):
        for _ in range(AT_ONCE + 1):
            scene.begin()
        await scene.settle()
        if close_to_the_limit:
            for _ in range(int(FIRST_IMAGE_LIMIT * 0.75)):
                scene.admission.admit(100).begin([1000])
        scene.gate.set()
        await scene.settle()
        scene.begin()
        await scene.settle()
        more = {"dropped": 2} if close_to_the_limit else {}
        assert scene.outcomes() == {"agrees": AT_ONCE + (0 if close_to_the_limit else 2), **more}

    scene(play)


@pytest.mark.parametrize(
    ("found", "outcome"),
    [(ANSWER, "agrees"), (OTHER, "differs"), (NotReady("gone"), "failed"), (ValueError(), "failed")],
)
def test_whatever_becomes_of_it_is_counted_and_nothing_else(found, outcome):
    async def play(scene):
        scene.gate.set()
        scene.begin(found=found)
        await scene.settle()
        assert scene.outcomes() == {outcome: 1}

    scene(play)


def test_an_image_that_would_need_the_last_decoder_is_dropped():
    async def play(scene):
        scene.begin(is_possible=False)
        assert scene.outcomes() == {"dropped": 1}

    scene(play)


def test_what_is_under_way_is_given_up_at_the_end():
    async def play(scene):
        for _ in range(AT_ONCE + 1):
            scene.begin()
        await scene.settle()
        scene.shadow.close()
        await scene.settle()
        assert (scene.asked, scene.outcomes()) == (AT_ONCE, {})

    scene(play)
