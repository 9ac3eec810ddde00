"""Pixels in memory that gateway and Triton share: with real Tritons, and what happens when a request fails."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from deit.ports import free_ports
from serving.embedded.triton import embedded_triton
from serving.gateway.connection import wait_until_ready
from serving.gateway.errors import DeadlineExceeded
from serving.gateway.shared_pixels import KEY_NAME, REGION_BYTES, Region
from serving.gateway.triton_client import TritonClient
from serving.settings.triton import TritonPorts, TritonSettings
from tests.conftest import encoded, photograph
from tests.serving.conftest import IMAGE_SIZE, MODEL, commands, descendants, eventually, shared_regions
from tests.serving.gateway.test_cross_talk import assert_nothing_is_mixed_up

SHAPE = (IMAGE_SIZE, IMAGE_SIZE, 3)
IMAGES = list(np.random.default_rng(0).integers(0, 256, (8, *SHAPE), np.uint8))


class Triton:
    """A real one in this process's hands, whose key is known."""

    def __init__(self, url, embedded):
        self.url = url
        self.key = embedded.shared_memory_key
        self.pid, self._embedded = embedded.process.pid, embedded

    def client(self, key=None):
        return TritonClient(self.url, shared_memory_key=key or self.key)

    def stub(self):
        children = descendants(self.pid)
        names = commands(children)
        return next(pid for pid, name in zip(children, names, strict=True) if name.startswith("triton_python"))

    def unregister(self):
        with InferenceServerClient(self.url) as client:
            client.unregister_system_shared_memory(headers={f"triton-grpc-protocol-{KEY_NAME}": self.key})


@pytest.fixture(scope="module")
def triton(model_repository):
    ports = TritonPorts(**dict(zip(("grpc", "metrics"), free_ports(2), strict=True)))
    settings = TritonSettings(model_repository=model_repository, ports=ports)
    with embedded_triton(settings, most_restarts=0, shared_memory=True) as embedded:
        url = f"127.0.0.1:{ports.grpc}"
        wait_until_ready([url], timeout_s=200, raise_if_in_vain=lambda: None)
        yield Triton(url, embedded)


def with_client(client_of, scenario):
    """Run scenario(ask, shared, client); ask(images) gives their probabilities."""

    async def run():
        client = client_of()

        async def ask(images, timeout_s=60):
            answers = await client.ask(MODEL, images, version="1", timeout_s=timeout_s)
            return np.stack([answer.probabilities for answer in answers])

        try:
            async with asyncio.timeout(120):
                await scenario(ask, client._shared)
        finally:
            await client.close()

    asyncio.run(run())


async def until(condition):
    while not condition():
        await asyncio.sleep(0.01)


async def another_region(shared, *, after=None):
    """The region that is in use when Triton has forgotten all others."""
    await until(lambda: shared._renewal.done() and shared._region is not None and shared._region.name != after)
    return shared._region.name


def test_answers_are_the_same_as_without_shared_memory(triton):
    plain = []

    async def without(ask, _):
        plain.extend([await ask(IMAGES[:1]), await ask(IMAGES)])

    async def with_shared_memory(ask, shared):
        name = await another_region(shared)
        assert shared_regions(triton.pid) == {name} <= shared_regions(os.getpid())
        for images, expected in zip((IMAGES[:1], IMAGES), plain, strict=True):
            np.testing.assert_array_equal(await ask(images), expected)
            lying = np.frombuffer(shared._region._memory, np.uint8, len(images) * images[0].nbytes)
            np.testing.assert_array_equal(lying, np.stack(images).ravel())
            del lying
        not_as_they_lie = [image[:, ::-1] for image in IMAGES]
        np.testing.assert_array_equal(
            await ask(not_as_they_lie), await ask([image.copy() for image in not_as_they_lie])
        )

    with_client(lambda: TritonClient(triton.url), without)
    with_client(triton.client, with_shared_memory)
    assert not shared_regions(triton.pid), "they are unregistered at the end"
    assert not list(Path("/dev/shm").glob(f"deit-pixels-*-{os.getpid()}-*"))


def test_what_a_failed_request_left_is_never_overwritten_and_is_dropped_once_triton_has_finished(triton):
    async def scenario(ask, shared):
        first = await another_region(shared)
        os.kill(triton.stub(), signal.SIGSTOP)
        try:
            with pytest.raises(DeadlineExceeded):
                await ask(IMAGES[:1], timeout_s=0.3)
            await until(lambda: shared._region is not None)
            with pytest.raises(DeadlineExceeded):
                await ask(IMAGES[1:], timeout_s=0.3)
            assert first in shared_regions(triton.pid), "Triton may still read it"
            np.testing.assert_array_equal(read(triton.pid, first, IMAGES[0].nbytes), IMAGES[0].ravel())
        finally:
            os.kill(triton.stub(), signal.SIGCONT)
        current = await another_region(shared)
        assert shared_regions(triton.pid) == {current} != {first}
        assert np.isfinite(await ask(IMAGES)).all()

    with_client(triton.client, scenario)


def read(pid, name, count):
    """The first bytes of memory that is mapped there."""
    start = re.search(rf"^([0-9a-f]+)-.*{name}", Path(f"/proc/{pid}/maps").read_text(), re.MULTILINE)[1]
    with Path(f"/proc/{pid}/mem").open("rb") as memory:
        memory.seek(int(start, 16))
        return np.frombuffer(memory.read(count), np.uint8)


def test_a_region_that_triton_does_not_know_any_more_costs_no_answer(triton):
    """As after a restart that nobody has noticed, because nothing was asked meanwhile."""

    async def scenario(ask, shared):
        first = await another_region(shared)
        expected = await ask(IMAGES)
        await asyncio.to_thread(triton.unregister)
        np.testing.assert_array_equal(await ask(IMAGES), expected)
        current = await another_region(shared, after=first)
        assert shared_regions(triton.pid) == {current}

    with_client(triton.client, scenario)


def test_without_the_key_nobody_registers_memory_and_requests_carry_their_pixels(triton, caplog):
    with InferenceServerClient(triton.url) as client:
        for ask in (client.get_system_shared_memory_status, lambda: client.register_system_shared_memory("a", "/a", 1)):
            with pytest.raises(InferenceServerException, match="restricted"):
                ask()

    async def scenario(ask, shared):
        await until(lambda: "restricted" in caplog.text)
        assert np.isfinite(await ask(IMAGES)).all()
        assert shared._region is None

    with_client(lambda: triton.client("wrong"), scenario)


def classified(server):
    """The status of one upload."""
    return server.post("/classify", content=encoded(photograph(60, 50))).status_code


def test_a_gateway_in_front_of_an_external_triton_takes_its_key(triton, deit_serve):
    gateway = deit_serve(
        *(f"--triton-url={triton.url}", "--shared-memory"), environment={"DEIT_SHARED_MEMORY_KEY": triton.key}
    ).wait_until_ready()
    assert classified(gateway) == 200
    eventually(lambda: shared_regions(triton.pid) == shared_regions(gateway.process.pid) != set())
    assert triton.key not in gateway.output


def test_no_answer_belongs_to_another_image_while_callers_leave_and_triton_is_killed(deit_serve, model_repository):
    server = deit_serve(
        *("--model-repository", model_repository, "--shared-memory", "--images-per-request=8"),
        *("--max-wait-s=60", "--request-timeout-s=60"),
    ).wait_until_ready()
    first = shared_regions(server.pid_of("tritonserver"))
    kill = (0.3, lambda: os.kill(server.pid_of("tritonserver"), signal.SIGKILL))
    crowd = assert_nothing_is_mixed_up(server, model_repository, 200, incidents=[kill])
    assert crowd.served
    eventually(lambda: classified(server) == 200)  # Triton takes a second to start again; until then 503 is right
    crowd = assert_nothing_is_mixed_up(server, model_repository, 60)
    assert crowd.refused == 0
    triton = server.pid_of("tritonserver")
    eventually(lambda: shared_regions(triton) & shared_regions(server.process.pid))  # it may try only once a second
    assert not shared_regions(triton) & first
    server.close()
    assert not list(Path("/dev/shm").glob(f"deit-pixels-*-{server.process.pid}-*"))


def test_places_do_not_overlap_and_are_used_again():
    region = Region(f"deit-pixels-test-{os.getpid()}")
    region.hide()
    numbers, held = np.random.default_rng(0), []
    image = np.zeros((224, 224, 3), np.uint8)
    for _ in range(2000):
        if held and numbers.random() < 0.5:
            region.give_back(held.pop(numbers.integers(len(held))))
        elif place := region.put([image] * numbers.choice([1, 8, 32])):
            assert all(place.end <= other.start or other.end <= place.start for other in held)
            held.append(place)
        else:
            assert sum(other.size for other in held) > REGION_BYTES / 4, "full, or nearly"
    for place in held:
        region.give_back(place)
    assert region._free == [(0, REGION_BYTES)]
    region.close()


def test_a_full_dev_shm_refuses_and_does_not_end_the_process():
    """In a mount namespace of its own, with a /dev/shm of 2 MiB."""
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode
    ):
        pytest.skip("only root may mount a small /dev/shm")
    code = (
        "import numpy as np; from serving.gateway.shared_pixels import Region; region = Region('deit-pixels-full')\n"
        "for _ in range(2): region.put([np.zeros((1024, 1024, 1), np.uint8)])\n"
        "try: region.put([np.zeros((8, 8, 3), np.uint8)])\n"
        "except OSError as error: print(error.strerror)"
    )
    mount = 'mount -t tmpfs -o size=2m none /dev/shm && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, "sh", sys.executable, "-c", code], capture_output=True, text=True
    )
    assert done.stdout == "No space left on device\n", done.stderr
