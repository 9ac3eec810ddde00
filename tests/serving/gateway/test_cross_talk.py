"""Each answer belongs to the image that was asked about: under concurrency, cancellation, and while things break."""

import asyncio
import gc
import os
import random
import shutil
import signal
import warnings

import httpx
import numpy as np
import onnxruntime
import pytest
from PIL import Image

from deit.model import PROBABILITIES
from deit.preprocessing import resize_and_crop
from tests.conftest import encoded
from tests.serving.conftest import LABELS, PREPROCESSING, SHADOWED, shadow_outcomes, write_model
from tests.serving.embedded.test_reload import reloaded

CLIENTS = 32
CANCELLED_SHARE = 0.1

# The batch that Triton forms differs from the reference's, which may move the last bits of a sum.
TOLERANCE = 1e-5


def pictures(count):
    """Tiny ones, as PNG: every pixel is random, so each has an answer of its own."""
    numbers = np.random.default_rng(0)
    return [Image.fromarray(numbers.integers(0, 256, (40, 36, 3), np.uint8)) for _ in range(count)]


def reference(images, model_repository):
    session = onnxruntime.InferenceSession(model_repository / "tiny" / "1" / "model.onnx")
    rows = [
        session.run([PROBABILITIES], {"images": np.stack([resize_and_crop(each, PREPROCESSING) for each in part])})[0]
        for part in (images[start : start + 64] for start in range(0, len(images), 64))
    ]
    return np.concatenate(rows)


class Crowd:
    """Clients that together ask about every image once; some leave before their answer.

    Attributes:
        served: probabilities by the index of the image.
        versions: of the model that answered.
        refused: how many answers were a 503.
        left: how many clients left.
    """

    def __init__(self, url, contents):
        self._url = url
        self._contents = contents
        self._random = random.Random(0)
        self._turns = iter(range(len(contents)))
        self.served = {}
        self.versions = set()
        self.refused = self.left = 0

    @property
    def progress(self):
        return (len(self.served) + self.refused + self.left) / len(self._contents)

    async def ask_all(self):
        # Kept for good, because httpcore 1.0 may close a connection as idle that has just been given to another task.
        limits = httpx.Limits(max_connections=2 * CLIENTS, keepalive_expiry=None)
        async with httpx.AsyncClient(base_url=self._url, timeout=120, limits=limits) as client:
            await asyncio.gather(*(self._ask_in_turn(client) for _ in range(CLIENTS)))

    async def _ask_in_turn(self, client):
        for index in self._turns:
            asking = asyncio.create_task(self._ask(client, index))
            if self._random.random() < CANCELLED_SHARE:
                await asyncio.sleep(self._random.uniform(0, 0.02))
                asking.cancel()
            try:
                await asking
            except asyncio.CancelledError:
                self.left += 1

    async def _ask(self, client, index):
        answer = await client.post("/classify", params={"top_k": len(LABELS)}, content=self._contents[index])
        if answer.status_code == 503:
            self.refused += 1
            return
        assert answer.status_code == 200, answer.text
        row = np.zeros(len(LABELS))
        for prediction in answer.json()["predictions"]:
            row[prediction["index"]] = prediction["probability"]
        self.served[index] = row
        self.versions.add(answer.json()["version"])


async def at(crowd, progress, act):
    """Do something once the crowd has come so far."""
    while crowd.progress < progress:
        await asyncio.sleep(0.01)
    await asyncio.to_thread(act)


def assert_nothing_is_mixed_up(server, model_repository, count, *, incidents=()):
    """`incidents` are pairs of a progress from 0 to 1 and what is done then."""
    images = pictures(count)
    contents = [encoded(each, "PNG") for each in images]
    expected = reference(images, model_repository)
    assert len(np.unique(expected.round(4), axis=0)) == count, "every image has an answer of its own"
    crowd = Crowd(server.url, contents)

    async def scenario():
        async with asyncio.TaskGroup() as group:
            group.create_task(crowd.ask_all())
            for progress, act in incidents:
                group.create_task(at(crowd, progress, act))

    with warnings.catch_warnings():
        # A client that leaves while its connection opens has it closed by the garbage collector (httpx 0.28).
        warnings.filterwarnings("ignore", "unclosed transport", ResourceWarning)
        asyncio.run(scenario())
        gc.collect()
    assert crowd.left > 0
    assert len(crowd.served) + crowd.refused + crowd.left == count
    wrong = [index for index, row in crowd.served.items() if np.abs(row - expected[index]).max() > TOLERANCE]
    assert not wrong
    return crowd


def test_no_answer_belongs_to_another_image(server, model_repository):
    crowd = assert_nothing_is_mixed_up(server, model_repository, 500)
    assert crowd.refused == 0


@pytest.mark.soak
@pytest.mark.parametrize("shadow", [(), (SHADOWED,)], ids=["", "shadowed"])
def test_no_answer_of_ten_thousand_belongs_to_another_image(deit_serve, shadowed_repository, shadow):
    """While a decoder, the process that runs the model, and Triton are killed."""
    server = deit_serve(
        *("--model-repository", shadowed_repository, "--max-wait-s=60", "--request-timeout-s=60"),
        *("--triton-restarts=9", *shadow),
    ).wait_until_ready()
    crowd = assert_nothing_is_mixed_up(
        server,
        shadowed_repository,
        10_000,
        incidents=[
            (0.2, lambda: os.kill(server.decoders()[0], signal.SIGKILL)),
            (0.4, lambda: os.kill(server.pid_of("triton_python_backend"), signal.SIGKILL)),
            (0.6, lambda: os.kill(server.pid_of("tritonserver"), signal.SIGKILL)),
        ],
    )
    assert len(crowd.served) > 2000
    assert bool(shadow_outcomes(server.url).get("differs")) == bool(shadow)


@pytest.mark.soak
def test_no_answer_of_ten_thousand_belongs_to_another_image_over_a_reload(deit_serve, tmp_path):
    """To a version with the same weights, so that one reference holds; and nobody is refused."""
    write_model(tmp_path / "tiny")
    server = deit_serve(
        *("--model-repository", tmp_path, "--allow-reload", "--max-wait-s=60", "--request-timeout-s=60")
    ).wait_until_ready()

    def publish_and_reload():
        shutil.copytree(tmp_path / "tiny" / "1", tmp_path / "tiny" / ".2")
        (tmp_path / "tiny" / ".2").rename(tmp_path / "tiny" / "2")
        assert "2" in reloaded(server)

    crowd = assert_nothing_is_mixed_up(server, tmp_path, 10_000, incidents=[(0.5, publish_and_reload)])
    assert crowd.refused == 0
    assert crowd.versions == {"1", "2"}
