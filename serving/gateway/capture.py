"""Saves a sample of the images with their predictions in a folder, to inspect them or to train on them.

Each becomes a separate folder, `<time>-<request id>-<random>/`, with the image as received and `answer.json`, written
atomically. One thread writes, and callers do not wait for it; if it falls behind, further images are dropped. When the
folder is full, saving stops until some are deleted.
"""

import asyncio
import contextlib
import fcntl
import json
import logging
import shutil
import time
import uuid
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deit.candidate import is_in_share
from deit.durable import new_folder
from deit.errors import ServingError
from deit.options import named
from serving.gateway.metrics import Metrics
from serving.gateway.triton_client import Probabilities
from serving.gateway.uploads import Upload
from serving.settings.capture import CaptureSettings

logger = logging.getLogger(__name__)

MOST_WAITING = 32
MOST_WAITING_BYTES = 32 * 2**20

TALLY_FILE = ".tally"

CLASSES = 5
"""Number of classes kept of an answer, the most probable ones."""

ABANDONED_S = 3600.0
"""A hidden folder older than this was left by a killed writer."""

LOOK_AGAIN_S = 60.0
"""How often a full folder is checked again."""


@dataclass(frozen=True, eq=False)
class Captured:
    """An image with its answer, until it is written."""

    upload: Upload
    request_id: str
    model: str
    version: str
    labels: tuple[str, ...]
    probabilities: Probabilities


class Capture:
    """Belongs to the event loop; creates the folder, only for this user, if it is missing.

    Raises:
        ServingError: the folder cannot be written.
    """

    def __init__(self, folder: Path, settings: CaptureSettings, metrics: Metrics) -> None:
        self._folder = folder
        self._settings = settings
        self._metrics = metrics
        self._waiting: deque[Captured] = deque()
        self._waiting_bytes = 0
        self._writing: asyncio.Task[None] | None = None
        self._looked_s = time.monotonic()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with counted(folder) as held:
                held.count_again()
        except OSError as error:
            raise ServingError(f"{named('--capture')}: {folder} cannot be written ({error.strerror})") from error

    def takes(self, request_id: str) -> bool:
        """Whether a request is in the share, by its id."""
        return is_in_share(request_id, self._settings.percent, of="capture")

    def keep(self, captured: Captured) -> None:
        """Returns at once."""
        size = len(captured.upload.content)
        if len(self._waiting) >= MOST_WAITING or self._waiting_bytes + size > MOST_WAITING_BYTES:
            self._metrics.count_capture("dropped")
            return
        self._waiting.append(captured)
        self._waiting_bytes += size
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all())

    async def written(self) -> None:
        """Return when everything queued has been written."""
        if self._writing is not None:
            await self._writing

    async def _write_all(self) -> None:
        while self._waiting:
            captured = self._waiting.popleft()
            self._waiting_bytes -= len(captured.upload.content)
            try:
                outcome = await asyncio.to_thread(self._write, captured)
            except Exception as error:
                logger.warning("an image could not be captured in %s: %s", self._folder, error)
                outcome = "failed"
            self._metrics.count_capture(outcome)
        self._writing = None

    def _write(self, captured: Captured) -> str:
        """In a thread. Returns the outcome."""
        size = len(captured.upload.content)
        with counted(self._folder) as held:
            if not self._fits(held, size) and time.monotonic() - self._looked_s > LOOK_AGAIN_S:
                self._looked_s = time.monotonic()
                held.count_again()
            if not self._fits(held, size):
                return "full"
            name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{captured.request_id}-{uuid.uuid4().hex[:8]}"
            kind = (captured.upload.header.format or "bin").lower().replace("jpeg", "jpg")
            with new_folder(self._folder / name, is_private=True) as folder:
                (folder / f"picture.{kind}").write_bytes(captured.upload.content)
                (folder / "answer.json").write_text(json.dumps(described(captured), indent=1) + "\n")
            held.images += 1
            held.bytes += size
        return "written"

    def _fits(self, held: "Contents", size: int) -> bool:
        return held.images < self._settings.max_images and held.bytes + size <= self._settings.max_bytes


def described(captured: Captured) -> dict[str, object]:
    """answer.json, which contains nothing about the caller."""
    order = (-captured.probabilities).argsort(kind="stable")[:CLASSES].tolist()
    return {
        "request_id": captured.request_id,
        "model": captured.model,
        "version": captured.version,
        "predictions": [
            {"index": index, "label": captured.labels[index], "probability": float(captured.probabilities[index])}
            for index in order
        ],
    }


@dataclass
class Contents:
    """How many images a folder holds, and the bytes of their pictures."""

    folder: Path
    images: int = 0
    bytes: int = 0

    def count_again(self) -> None:
        """Count the folder's contents, since some may have been deleted, and remove what a killed writer left."""
        self.images = self.bytes = 0
        for entry in self.folder.iterdir():
            if not entry.name.startswith("."):
                self.images += 1
                self.bytes += sum(picture.stat().st_size for picture in entry.glob("picture.*"))
            elif entry.is_dir() and time.time() - entry.stat().st_mtime > ABANDONED_S:
                shutil.rmtree(entry, ignore_errors=True)


@contextlib.contextmanager
def counted(folder: Path) -> Iterator[Contents]:
    """The count that all gateways keep in one file, locked while the block runs."""
    with (folder / TALLY_FILE).open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        found = Contents(folder)
        try:
            found.images, found.bytes = map(int, file.read().split())
        except ValueError:  # new, or cut off by a full disk
            found.count_again()
        yield found
        file.truncate(0)
        file.write(f"{found.images} {found.bytes}\n")
