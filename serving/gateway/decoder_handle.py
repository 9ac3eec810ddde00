"""A process of decoder_process.py as the gateway sees it: starts it, sends it images one by one, and ends it."""

import asyncio
import contextlib
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deit.picture_header import Header
from deit.preprocessing import Preprocessing
from serving.gateway.decoder_process import MESSAGE_BYTES, question
from serving.gateway.errors import PROBLEMS, DecoderLost, ImageTooComplex, UndecodableImage
from serving.settings.limits import Limits

PACKAGES = Path(__file__).parents[2]

# Pixels of a model with an input of 1182 x 1182. Only what is touched takes memory.
SMALLEST_REGION_BYTES = 4 * 2**20

# The slowest legal file known decodes 17 megapixels a second on one core; this is twice as long.
CPU_S_PER_MEGAPIXEL = 0.12
LEAST_CPU_LIMIT_S = 1.0

# For one image, on top of the interpreter's. The most that was seen is 24 per pixel, for a WebP with transparency.
MEMORY_BYTES_PER_PIXEL = 32
MEMORY_BYTES = 64 * 2**20

# After this long a decoder that the kernel does not let run (the machine swaps) is replaced.
HANG_S = 30.0

END_POLL_S = 0.005

# Signals that end C code which malformed input led astray
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)


@dataclass(frozen=True)
class ModelInput:
    """The model's input for an image, and what it took to make it.

    Attributes:
        pixels: uint8 (image_size, image_size, 3), RGB.
        stages_s: seconds by stage: waiting for a decoder, decoding, preprocessing.
    """

    pixels: npt.NDArray[np.uint8]
    stages_s: dict[str, float]


class DecoderProcess:
    """One process, and the memory that it shares with this one. Made in a running event loop."""

    def __init__(self, limits: Limits) -> None:
        self.is_usable = True
        self._is_stopped = False
        self._loop = asyncio.get_running_loop()
        self._is_ready: asyncio.Future[None] = self._loop.create_future()
        self._work: DecodingJob | None = None
        self._farewell: asyncio.Task[None] | None = None
        self._cpu_limit_s = max(LEAST_CPU_LIMIT_S, CPU_S_PER_MEGAPIXEL * limits.max_image_pixels / 1e6)
        region_bytes = max(SMALLEST_REGION_BYTES, limits.max_body_bytes)
        with contextlib.ExitStack() as after_start, contextlib.ExitStack() as after_failure:
            region = os.memfd_create("deit-decoder")
            after_start.callback(os.close, region)
            self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            after_start.callback(theirs.close)
            after_failure.callback(self._socket.close)
            os.ftruncate(region, region_bytes)
            self._region = mmap.mmap(region, region_bytes)
            self._socket.setblocking(False)
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "serving.gateway.decoder_process"),
                    *(f"--socket={theirs.fileno()}", f"--region={region}"),
                    *(f"--max-pixels={limits.max_image_pixels}", f"--cpu-limit-s={self._cpu_limit_s}"),
                    f"--memory-limit={MEMORY_BYTES + MEMORY_BYTES_PER_PIXEL * limits.max_image_pixels}",
                ],
                # The same packages as here, wherever the command was found; nothing else of the environment.
                env={"PYTHONPATH": str(PACKAGES), "OPENBLAS_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), region),
            )
            after_failure.pop_all()
        self._loop.add_reader(self._socket, self._hear)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._farewell is not None or self._process.poll() is not None

    @property
    def is_alive(self) -> bool:
        """Whether it has started, runs, and was not stopped at the last check."""
        return self._is_ready.done() and not self._is_stopped and not self.has_ended

    def look_whether_stopped(self) -> bool:
        """Whether it is stopped, by a signal or a debugger (proc_pid_stat(5), field 3)."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # it ended, or this process has no file descriptor left
            state = ""
        self._is_stopped = state in ("T", "t")
        return self._is_stopped

    async def wait_until_ready(self) -> None:
        """Raises OSError when it ends instead."""
        await self._is_ready

    def begin(
        self, content: bytes, header: Header, preprocessing: Preprocessing, mode: str
    ) -> asyncio.Future[ModelInput]:
        """Decode an upload. Never cancel the future; without `is_usable` after it the process must be killed."""
        self.is_usable = False
        self._work = DecodingJob(
            self._loop.create_future(), preprocessing.image_size, self._loop.call_later(HANG_S, self._give_up)
        )
        self._region[: len(content)] = content
        with contextlib.suppress(OSError):  # it has ended, which is heard too
            self._socket.send(question(len(content), header, mode, preprocessing))
        return self._work.decoding

    def kill(self) -> int:
        """End it in any state, and return its exit status, negative for a signal."""
        self.is_usable = False
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._region.close()
        self._process.kill()
        return self._process.wait()

    def _hear(self) -> None:
        """Handle the next message, or the end of the process."""
        try:
            message = self._socket.recv(MESSAGE_BYTES)
        except BlockingIOError:
            return
        except ConnectionError:
            message = b""
        if not message:
            self._loop.remove_reader(self._socket)
            self._farewell = self._loop.create_task(self._end())
        elif not self._is_ready.done():
            self._is_ready.set_result(None)
        elif self._work is not None:  # else it was given up
            self._answer(self._finish(), json.loads(message))

    def _answer(self, work: "DecodingJob", reply: dict[str, Any]) -> None:
        self.is_usable = True
        if "problem" in reply:
            work.decoding.set_exception(PROBLEMS[reply["problem"]](reply["detail"]))
            return
        size = work.image_size
        # Copied at once, because the next image may overwrite this one before anyone reads these pixels.
        pixels = np.frombuffer(self._region[: size * size * 3], np.uint8).reshape(size, size, 3)
        work.decoding.set_result(ModelInput(pixels, reply))

    async def _end(self) -> None:
        """Report how the process ended, for the image that it was decoding or for its start."""
        while (status := self._process.poll()) is None:  # a thread could not be started when processes run out
            await asyncio.sleep(END_POLL_S)
        if self._work is not None:
            self._finish().decoding.set_exception(self._loss(status))
        elif not self._is_ready.done():
            self._is_ready.set_exception(OSError(f"a decoder ended with status {status} before it was ready"))

    def _loss(self, status: int) -> DecoderLost | ImageTooComplex | UndecodableImage:
        """The problem of the image that was being decoded, by how the process ended."""
        if status == -signal.SIGPROF:
            return ImageTooComplex(f"the image takes more than {self._cpu_limit_s:g} s to decode")
        if -status in CRASHES:
            return UndecodableImage("the image is damaged in a way that ends the library which decodes it")
        return DecoderLost(
            f"the process that decoded the image ended with status {status}; the image may not be the cause"
        )

    def _give_up(self) -> None:
        self._finish().decoding.set_exception(DecoderLost(f"the image was not decoded within {HANG_S:g} s"))

    def _finish(self) -> "DecodingJob":
        assert self._work is not None
        work, self._work = self._work, None
        work.hang.cancel()
        return work


class DecodingJob(NamedTuple):
    """An image that is being decoded. `hang` abandons it after HANG_S."""

    decoding: asyncio.Future[ModelInput]
    image_size: int
    hang: asyncio.TimerHandle
