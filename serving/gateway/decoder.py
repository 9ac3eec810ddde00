"""Decodes uploads in processes of their own, so that no image delays, or takes down, what it came with.

A decoder that ends (a crash in a library, the kernel's out-of-memory killer, a limit) is replaced; only the image that
it had at hand is refused. Threads decode as fast, but share the interpreter lock with the event loop for everything
that Pillow does in Python, and one crash ends them all.
"""

import asyncio
import contextlib
import json
import logging
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from deit.preprocessing import Preprocessing
from serving.gateway.declared_size import LARGE_PIXELS, declared_pixels
from serving.gateway.decoder_process import MESSAGE_BYTES, question
from serving.gateway.errors import PROBLEMS, DecoderLost, ImageTooComplex, NotReady, UndecodableImage
from serving.settings import Decoding, Limits

logger = logging.getLogger(__name__)

PACKAGES = Path(__file__).parents[2]

# Pixels of a model with an input of 1182 x 1182. Only what is touched takes memory.
SMALLEST_REGION_BYTES = 4 * 2**20

# The slowest legal file known decodes 17 megapixels a second on one core; this is twice as long.
CPU_S_PER_MEGAPIXEL = 0.12
LEAST_CPU_LIMIT_S = 1.0

# For one image, on top of the interpreter's. The most that was seen is 24 per pixel, for a WebP with transparency.
MEMORY_BYTES_PER_PIXEL = 32
MEMORY_BYTES = 64 * 2**20

# A decoder that the kernel does not let run (the machine swaps) is given up.
HANG_S = 30.0

LOOK_EVERY_S = 1.0
"""For decoders that ended while they had nothing to do, and for stopped ones: those are killed when seen twice."""

START_TIMEOUT_S = 60.0
PAUSE_AFTER_FAILED_START_S = 1.0

END_POLL_S = 0.005

# Signals by which C code ends that was led astray by its input
CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)


@dataclass(frozen=True)
class ModelInput:
    """What the model reads of an image, and what making it cost.

    Attributes:
        pixels: uint8 (image_size, image_size, 3), RGB.
        stages_s: seconds by stage: waiting for a decoder, decoding, preprocessing.
    """

    pixels: npt.NDArray[np.uint8]
    stages_s: dict[str, float]


class Decoder:
    """The decoding processes. Belongs to the event loop in which it is started.

    Args:
        on_loss: called when a process ended that should not.
    """

    def __init__(self, decoding: Decoding, limits: Limits, on_loss: Callable[[], None]) -> None:
        self._decoding = decoding
        self._limits = limits
        self._on_loss = on_loss
        # The one used last first: its memory is warm.
        self._idle: asyncio.LifoQueue[DecoderProcess] = asyncio.LifoQueue()
        # One decoder stays free of large images.
        self._large_turns = asyncio.Semaphore(max(1, decoding.processes - 1))
        self.processes: set[DecoderProcess] = set()
        self._replacements: set[asyncio.Task[None]] = set()
        self._watch: asyncio.Task[None] | None = None
        self._start_failure: str | None = None
        self._is_closed = False

    @property
    def idle(self) -> int:
        """How many processes have nothing to do."""
        return self._idle.qsize()

    async def start(self) -> None:
        """Return when every process is ready.

        Raises:
            OSError: one ended at once; its own words are in the log.
        """
        processes = [self._new_process() for _ in range(self._decoding.processes)]
        for process in processes:
            await process.wait_until_ready()
            self._idle.put_nowait(process)
        self._watch = asyncio.create_task(self._look_after())

    def findings(self) -> list[str]:
        """What is wrong, in a sentence, when no image can be decoded; else empty."""
        if any(process.is_alive for process in self.processes):
            return []
        return [f"no decoder runs: {self._start_failure or 'others are being started'}"]

    def close(self) -> None:
        self._is_closed = True
        if self._watch is not None:
            self._watch.cancel()
        for replacement in self._replacements:
            replacement.cancel()
        for process in self.processes:
            process.kill()

    async def model_input(self, content: bytes, preprocessing: Preprocessing) -> ModelInput:
        """The pixels that a model reads of an upload.

        When the caller is cancelled, an image that still waits is not decoded; one that is being decoded is finished
        in the background.

        Raises:
            UnsupportedType, UndecodableImage, ImageTooLarge, ImageTooComplex, DecoderLost
            NotReady: no decoder runs, and none can be started.
        """
        if self._start_failure is not None and self.findings():
            raise NotReady("no process can be started that decodes images")
        asked_s = time.monotonic()
        pixels = declared_pixels(content)
        is_large = pixels is None or pixels >= LARGE_PIXELS  # as admission takes them
        if is_large:
            await self._large_turns.acquire()
        try:
            while (process := await self._idle.get()).has_ended:  # killed while it had nothing to do
                self._replace(process, "it was killed")
        except asyncio.CancelledError:
            self._end_turn(is_large)
            raise
        waited_s = time.monotonic() - asked_s
        decoding = process.begin(content, preprocessing, self._decoding.mode)
        decoding.add_done_callback(lambda done: self._take_back(process, done, is_large))
        try:
            decoded = await asyncio.shield(decoding)
        finally:
            del decoding  # which holds its failure, and that this frame with the upload: a circle
        return ModelInput(decoded.pixels, {"wait": waited_s, **decoded.stages_s})

    def _take_back(self, process: "DecoderProcess", decoding: asyncio.Future[ModelInput], is_large: bool) -> None:
        self._end_turn(is_large)
        failure = decoding.exception()  # asked, also where nobody waits for it any more
        if process.is_usable:
            self._idle.put_nowait(process)
        elif not self._is_closed:
            self._replace(process, failure)

    def _replace(self, process: "DecoderProcess", reason: object) -> None:
        logger.error("a decoder ended and is replaced: %s", reason)
        self._on_loss()
        process.kill()
        self.processes.discard(process)
        replacement = asyncio.ensure_future(self._start_another())
        self._replacements.add(replacement)
        replacement.add_done_callback(self._replacements.discard)

    def _end_turn(self, is_large: bool) -> None:
        if is_large:
            self._large_turns.release()

    async def _start_another(self) -> None:
        while True:
            process = None
            try:
                process = self._new_process()
                async with asyncio.timeout(START_TIMEOUT_S):
                    await process.wait_until_ready()
            except OSError as error:  # too few files, processes or memory at the moment; TimeoutError is one too
                self._start_failure = str(error) or f"a decoder was not ready after {START_TIMEOUT_S:g} s"
                logger.error("%s; trying again in %.0f s", self._start_failure, PAUSE_AFTER_FAILED_START_S)
                if process is not None:
                    process.kill()
                    self.processes.discard(process)
                await asyncio.sleep(PAUSE_AFTER_FAILED_START_S)
            else:
                self._start_failure = None
                self._idle.put_nowait(process)
                return

    async def _look_after(self) -> None:
        """Replace, for ever, what ended while idle, and kill what is stopped: it then ends as any other."""
        suspects: set[DecoderProcess] = set()
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            for process in reversed([self._idle.get_nowait() for _ in range(self._idle.qsize())]):
                if process.has_ended:
                    self._replace(process, "it was killed")
                else:
                    self._idle.put_nowait(process)
            stopped = {process for process in self.processes if process.look_whether_stopped()}
            for process in stopped & suspects:
                logger.error("the decoder %d is stopped and is killed", process.pid)
                os.kill(process.pid, signal.SIGKILL)
            suspects = stopped

    def _new_process(self) -> "DecoderProcess":
        process = DecoderProcess(self._limits)
        self.processes.add(process)
        return process


class DecoderProcess:
    """One process of decoder_process.py, and the memory it shares with this one. Made in a running event loop."""

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
        """It has started, runs, and was not stopped when last looked at."""
        return self._is_ready.done() and not self._is_stopped and not self.has_ended

    def look_whether_stopped(self) -> bool:
        """By a signal or a debugger (proc_pid_stat(5), field 3)."""
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # it ended, or this process has no file descriptor left
            state = ""
        self._is_stopped = state in ("T", "t")
        return self._is_stopped

    async def wait_until_ready(self) -> None:
        """Raises OSError when it ends instead."""
        await self._is_ready

    def begin(self, content: bytes, preprocessing: Preprocessing, mode: str) -> asyncio.Future[ModelInput]:
        """Decode an upload. Never cancel the future; without `is_usable` after it the process must be killed."""
        self.is_usable = False
        self._work = DecodingJob(
            self._loop.create_future(), preprocessing.image_size, self._loop.call_later(HANG_S, self._give_up)
        )
        self._region[: len(content)] = content
        with contextlib.suppress(OSError):  # it has ended, which is heard too
            self._socket.send(question(len(content), mode, preprocessing))
        return self._work.decoding

    def kill(self) -> int:
        """End it in any state; its exit status, negative for a signal."""
        self.is_usable = False
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._region.close()
        self._process.kill()
        return self._process.wait()

    def _hear(self) -> None:
        """Take the next message, or the end of the process."""
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
        # Copied at once, because the next image may take this one's place before anybody waits for these pixels.
        pixels = np.frombuffer(self._region[: size * size * 3], np.uint8).reshape(size, size, 3)
        work.decoding.set_result(ModelInput(pixels, reply))

    async def _end(self) -> None:
        """Say of the image that was at hand, or of the start, how the process ended."""
        while (status := self._process.poll()) is None:  # a thread could not be started when processes run out
            await asyncio.sleep(END_POLL_S)
        if self._work is not None:
            self._finish().decoding.set_exception(self._loss(status))
        elif not self._is_ready.done():
            self._is_ready.set_exception(OSError(f"a decoder ended with status {status} before it was ready"))

    def _loss(self, status: int) -> DecoderLost | ImageTooComplex | UndecodableImage:
        """What to say of the image that was at hand, by how the process ended."""
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
        """Take the work at hand away and return it."""
        assert self._work is not None
        work, self._work = self._work, None
        work.hang.cancel()
        return work


class DecodingJob(NamedTuple):
    """An image at hand. `hang` gives it up after HANG_S."""

    decoding: asyncio.Future[ModelInput]
    image_size: int
    hang: asyncio.TimerHandle
