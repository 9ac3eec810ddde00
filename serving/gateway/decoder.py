"""Decodes uploads in separate processes, so that one image cannot delay or take down others.

A decoder that ends (a crash in a library, the kernel's out-of-memory killer, a limit) is replaced; only the image that
it was decoding is refused. Threads would be as fast, but share the GIL with the event loop for everything that Pillow
does in Python, and one crash would end them all.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable

from deit.picture_header import Header, read_header
from deit.preprocessing import Preprocessing
from serving.gateway.admission import LARGE_PIXELS
from serving.gateway.decoder_handle import DecoderProcess, ModelInput
from serving.gateway.errors import NotReady
from serving.settings.decoding import Decoding
from serving.settings.limits import Limits

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
"""How often to look for decoders that ended while idle, and for stopped ones, which are killed when seen twice."""

START_TIMEOUT_S = 60.0
PAUSE_AFTER_FAILED_START_S = 1.0


class Decoder:
    """The decoding processes. Belongs to the event loop in which it is started.

    Args:
        on_loss: called when a process ended unexpectedly.
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
        return self._idle.qsize()

    async def start(self) -> None:
        """Return when every process is ready.

        Raises:
            OSError: one ended at once; its output is in the log.
        """
        processes = [self._new_process() for _ in range(self._decoding.processes)]
        for process in processes:
            await process.wait_until_ready()
            self._idle.put_nowait(process)
        self._watch = asyncio.create_task(self._look_after())

    def findings(self) -> list[str]:
        """Why images cannot be decoded, in a sentence; empty if they can."""
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

    async def model_input(
        self, content: bytes, preprocessing: Preprocessing, *, header: Header | None = None
    ) -> ModelInput:
        """The pixels that a model reads of an upload.

        Args:
            header: of `content`, where it has been read already.

        When the caller is cancelled, an image that still waits is not decoded; one that is being decoded is finished
        in the background.

        Raises:
            UnsupportedType, UndecodableImage, ImageTooLarge, ImageTooComplex, DecoderLost
            NotReady: no decoder runs, and none can be started.
        """
        if self._start_failure is not None and self.findings():
            raise NotReady("the processes that decode images cannot be started")
        asked_s = time.monotonic()
        header = read_header(content) if header is None else header
        is_large = header.pixels is None or header.pixels >= LARGE_PIXELS  # as admission takes them
        if is_large:
            await self._large_turns.acquire()
        try:
            while (process := await self._idle.get()).has_ended:  # killed while it had nothing to do
                self._replace(process, "it was killed")
        except asyncio.CancelledError:
            self._end_turn(is_large)
            raise
        waited_s = time.monotonic() - asked_s
        decoding = process.begin(content, header, preprocessing, self._decoding.mode)
        decoding.add_done_callback(lambda done: self._take_back(process, done, is_large))
        try:
            decoded = await asyncio.shield(decoding)
        finally:
            del decoding  # which holds its failure, and that this frame with the upload: a circle
        return ModelInput(decoded.pixels, {"wait": waited_s, **decoded.stages_s})

    def _take_back(self, process: DecoderProcess, decoding: asyncio.Future[ModelInput], is_large: bool) -> None:
        self._end_turn(is_large)
        failure = decoding.exception()  # retrieved even if nobody waits for it any more
        if process.is_usable:
            self._idle.put_nowait(process)
        elif not self._is_closed:
            self._replace(process, failure)

    def _replace(self, process: DecoderProcess, reason: object) -> None:
        logger.error("a decoder died and is being replaced: %s", reason)
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
        """Keep replacing decoders that ended while idle, and killing stopped ones, which are then replaced too."""
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
                logger.error("the decoder %d is stopped, by a signal or a debugger; killing it", process.pid)
                os.kill(process.pid, signal.SIGKILL)
            suspects = stopped

    def _new_process(self) -> DecoderProcess:
        process = DecoderProcess(self._limits)
        self.processes.add(process)
        return process
