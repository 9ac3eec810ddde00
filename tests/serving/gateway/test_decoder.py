"""Decoding in processes of their own: what happens to one image happens to that image alone."""

import asyncio
import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from deit.model_input import model_input
from deit.pictures import PictureLimits
from deit.preprocessing import Preprocessing
from serving.gateway import decoder_handle
from serving.gateway.decoder import Decoder
from serving.gateway.errors import DecoderLost, ImageTooComplex, NotReady, UndecodableImage, UnsupportedType
from serving.settings.decoding import Decoding
from serving.settings.limits import Limits
from tests.conftest import REPOSITORY_ROOT, encoded, photograph
from tests.serving.conftest import is_alive

PREPROCESSING = Preprocessing(
    image_size=224, crop_pct=0.875, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)
SMALL = encoded(photograph(96, 64))

pytestmark = pytest.mark.usefixtures("pillow_warnings_as_served")


@pytest.fixture(scope="module")
def large():
    """Takes a fifth of a second on an idle core."""
    return encoded(photograph(500, 500).resize((4000, 4000)))


def with_decoder(scenario, *, processes=2, mode="fast", **limits):
    """Run `scenario(decoder)` with running processes; how many were lost meanwhile."""
    lost = []

    async def run():
        decoder = Decoder(
            Decoding(processes=processes, mode=mode), Limits(**limits), lambda: lost.append(time.monotonic())
        )
        try:
            await decoder.start()
            await asyncio.wait_for(scenario(decoder), 120)
        finally:
            decoder.close()

    asyncio.run(run())
    return len(lost)


def pids(decoder):
    return {process.pid for process in decoder.processes}


async def busy_pid(decoder):
    """The id of a process that has an image at hand, once there is one."""
    while not (busy := [process.pid for process in decoder.processes if not process.is_usable]):
        await asyncio.sleep(0.001)
    return busy[0]


def test_the_pixels_are_those_of_the_rules_in_this_process():
    contents = [encoded(photograph(300 + index, 200, seed=index)) for index in range(20)]

    async def scenario(decoder):
        decoded = await asyncio.gather(*(decoder.model_input(content, PREPROCESSING) for content in contents))
        for content, ours in zip(contents, decoded, strict=True):
            expected = model_input(content, PREPROCESSING, PictureLimits(max_pixels=25_000_000))
            np.testing.assert_array_equal(ours.pixels, expected)
            assert set(ours.stages_s) == {"wait", "decode", "preprocess"}

    assert with_decoder(scenario) == 0


def test_a_refusal_is_the_problem_that_the_rules_raise():
    async def scenario(decoder):
        with pytest.raises(UnsupportedType, match="not an image"):
            await decoder.model_input(b"nothing", PREPROCESSING)

    assert with_decoder(scenario) == 0


@pytest.mark.parametrize(
    ("by", "problem"),
    [(signal.SIGKILL, DecoderLost), (signal.SIGSEGV, UndecodableImage), (signal.SIGPROF, ImageTooComplex)],
)
def test_a_process_that_dies_loses_its_image_alone_and_is_replaced(large, by, problem):
    async def scenario(decoder):
        before = pids(decoder)
        for pid in before:  # or the image might be finished first
            os.kill(pid, signal.SIGSTOP)
        victim = asyncio.ensure_future(decoder.model_input(large, PREPROCESSING))
        os.kill(await busy_pid(decoder), by)
        for pid in before:
            os.kill(pid, signal.SIGCONT)
        others = [decoder.model_input(SMALL, PREPROCESSING) for _ in range(20)]
        with pytest.raises(problem):
            await victim
        await asyncio.gather(*others)
        while len(pids(decoder) - before) < 1 or decoder.idle < 2:
            await asyncio.sleep(0.01)
        await asyncio.gather(*(decoder.model_input(SMALL, PREPROCESSING) for _ in range(4)))
        assert len(pids(decoder)) == 2

    assert with_decoder(scenario) == 1


def test_processes_that_are_killed_while_idle_harm_nobody():
    async def scenario(decoder):
        for _ in range(2):
            for pid in pids(decoder):
                os.kill(pid, signal.SIGKILL)
            while any(map(is_alive, pids(decoder))):
                await asyncio.sleep(0.001)
            await asyncio.gather(*(decoder.model_input(SMALL, PREPROCESSING) for _ in range(4)))
            while decoder.idle < 2:
                await asyncio.sleep(0.001)

    assert with_decoder(scenario) == 4


def test_an_image_that_takes_too_long_is_refused(large, monkeypatch):
    monkeypatch.setattr(decoder_handle, "LEAST_CPU_LIMIT_S", 0.02)
    monkeypatch.setattr(decoder_handle, "CPU_S_PER_MEGAPIXEL", 0)

    async def scenario(decoder):
        with pytest.raises(ImageTooComplex, match="more than 0.02 s"):
            await decoder.model_input(large, PREPROCESSING)

    assert with_decoder(scenario, mode="exact") == 1


def test_an_image_that_takes_too_much_memory_is_refused(large, monkeypatch):
    monkeypatch.setattr(decoder_handle, "MEMORY_BYTES_PER_PIXEL", 1)
    monkeypatch.setattr(decoder_handle, "MEMORY_BYTES", 0)

    async def scenario(decoder):
        for _ in range(3):
            with pytest.raises(ImageTooComplex, match="more memory"):
                await decoder.model_input(large, PREPROCESSING)
            await decoder.model_input(SMALL, PREPROCESSING)

    assert with_decoder(scenario, mode="exact") == 0


def test_a_stopped_process_is_killed_soon_and_what_waits_is_decoded():
    async def scenario(decoder):
        for pid in pids(decoder):
            os.kill(pid, signal.SIGSTOP)
        started_s = time.monotonic()
        images = [asyncio.ensure_future(decoder.model_input(SMALL, PREPROCESSING)) for _ in range(10)]
        outcomes = await asyncio.gather(*images, return_exceptions=True)
        assert time.monotonic() - started_s < decoder_handle.HANG_S
        lost = [outcome for outcome in outcomes if isinstance(outcome, DecoderLost)]
        assert len(lost) == 2, "those at hand"
        assert all(hasattr(outcome, "pixels") for outcome in outcomes if outcome not in lost)

    assert with_decoder(scenario) == 2


def test_without_a_process_it_says_so_and_starts_others_unasked():
    async def scenario(decoder):
        assert decoder.findings() == []
        before = pids(decoder)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        while any(map(is_alive, before)):
            await asyncio.sleep(0.001)
        assert "no decoder runs" in decoder.findings()[0]
        while decoder.findings() or decoder.idle < 2:
            await asyncio.sleep(0.01)

    assert with_decoder(scenario) == 2


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_processes_that_cannot_be_started_for_a_while_are_started_later():
    """As when file descriptors run out."""

    async def scenario(decoder):
        await decoder.model_input(SMALL, PREPROCESSING)  # whatever is opened once
        before, files = pids(decoder), open_files()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (8, limits[1]))
        try:
            for pid in before:
                os.kill(pid, signal.SIGKILL)
            with pytest.raises(NotReady, match="cannot be started"):
                while True:
                    with contextlib.suppress(TimeoutError, DecoderLost):
                        await asyncio.wait_for(decoder.model_input(SMALL, PREPROCESSING), 0.1)
            assert "Too many open files" in decoder.findings()[0]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        while decoder.idle < 2:
            await asyncio.sleep(0.01)
        await decoder.model_input(SMALL, PREPROCESSING)
        while open_files() > files:  # until the time is up
            await asyncio.sleep(0.01)

    assert with_decoder(scenario) == 2


def test_large_images_leave_a_decoder_free(large):
    async def scenario(decoder):
        crowd = [asyncio.ensure_future(decoder.model_input(large, PREPROCESSING)) for _ in range(6)]
        await busy_pid(decoder)
        await decoder.model_input(SMALL, PREPROCESSING)
        assert sum(task.done() for task in crowd) < 2
        await asyncio.gather(*crowd)

    assert with_decoder(scenario) == 0


def test_an_image_whose_client_left_is_finished_and_its_decoder_serves_on(large):
    async def scenario(decoder):
        left = [asyncio.ensure_future(decoder.model_input(large, PREPROCESSING)) for _ in range(4)]
        await busy_pid(decoder)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        before = pids(decoder)
        await asyncio.gather(*(decoder.model_input(large, PREPROCESSING) for _ in range(2)))
        assert pids(decoder) == before

    assert with_decoder(scenario) == 0


def test_processes_end_with_their_gateway():
    seen = []

    async def scenario(decoder):
        seen.extend(pids(decoder))

    with_decoder(scenario)
    assert len(seen) == 2
    assert not any(map(is_alive, seen))


def test_a_process_does_without_the_web_framework():
    """Each decoder would hold 6 MiB of it."""
    program = (
        "import serving.gateway.decoder_process, sys; print(sorted({'starlette', 'asyncio'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_a_process_has_limits_and_no_environment():
    async def scenario(decoder):
        for pid in pids(decoder):
            limits = Path(f"/proc/{pid}/limits").read_text()
            assert "Max data size             unlimited" not in limits
            assert "Max file size             0" in limits
            environment = Path(f"/proc/{pid}/environ").read_text()
            assert "HOME" not in environment

    with_decoder(scenario)
