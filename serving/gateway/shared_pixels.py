"""Pixels for a Triton on the same machine, in memory that it shares with the gateway.

A request then refers to a place in a region instead of carrying pixels, which gRPC and protobuf copy on both sides.

A region is a file in /dev/shm that is unlinked as soon as Triton has mapped it, so nothing is left behind when a
process is killed, and other programs cannot open it. Its name in Triton is random, because a request may name any
region. When a request fails (missed deadline, disconnected caller, broken connection), Triton may still read its pixels
later. So that region is never written again: another one replaces it, and Triton drops the old one after its last
request. Without a region, or when it is full, requests carry their pixels.
"""

import asyncio
import bisect
import contextlib
import logging
import mmap
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from grpc import ChannelConnectivity
from grpc.aio import AioRpcError, Channel
from tritonclient.grpc.service_pb2 import (
    ModelInferRequest,
    SystemSharedMemoryRegisterRequest,
    SystemSharedMemoryStatusRequest,
    SystemSharedMemoryUnregisterRequest,
)
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

logger = logging.getLogger(__name__)

KEY_NAME = "shared-memory"
"""What Triton calls the key: `--grpc-restricted-protocol=shared-memory:<name>=<key>`."""

REGION_BYTES = 64 * 2**20
"""Room for 445 images of 224 x 224 pixels in flight. Only what has been used takes memory."""

GROWTH_BYTES = 2**20
ALIGNMENT_BYTES = 64

MOST_LEFT = 4
"""Regions that Triton may still read. If there are so many, the model hangs, and it gets no more memory."""

CALL_TIMEOUT_S = 5.0
LOOK_EVERY_S = 0.1
PAUSE_AFTER_FAILURE_S = 1.0


class Region:
    """Memory in which places are allocated and freed. Call `hide` once Triton has mapped it, `close` at the end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._path = Path("/dev/shm", name)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        os.ftruncate(self._file, REGION_BYTES)
        self._memory = mmap.mmap(self._file, REGION_BYTES)
        self._reserved = 0
        self._free = [(0, REGION_BYTES)]
        """Ranges, in order. The first that is large enough is taken, because its memory is warm."""

    def hide(self) -> None:
        self._path.unlink()

    def close(self) -> None:
        """Triton keeps the memory until it drops the region."""
        os.close(self._file)
        self._memory.close()

    def put(self, images: Sequence[npt.NDArray[np.uint8]]) -> "Place | None":
        """Copy images of one shape, one after the other; None if there is no room.

        Raises:
            OSError: /dev/shm is full.
        """
        size = sum(image.nbytes for image in images)
        taken = -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        index = next((i for i, (start, end) in enumerate(self._free) if end - start >= taken), None)
        if index is None:
            return None
        start, free_until = self._free[index]
        end = start + taken
        self._reserve(end)
        self._free[index : index + 1] = [(end, free_until)] if end < free_until else []
        height, *rest = images[0].shape
        room = np.frombuffer(self._memory, np.uint8, size, start).reshape(len(images) * height, *rest)
        np.concatenate(images, out=room)
        return Place(self, start, end, size)

    def _reserve(self, end: int) -> None:
        """Writing where /dev/shm has no memory left would kill the process (SIGBUS)."""
        if end > self._reserved:
            end = min(REGION_BYTES, -(-end // GROWTH_BYTES) * GROWTH_BYTES)
            os.posix_fallocate(self._file, self._reserved, end - self._reserved)
            self._reserved = end

    def give_back(self, place: "Place") -> None:
        start, end = place.start, place.end
        index = bisect.bisect(self._free, (start, end))
        if index < len(self._free) and self._free[index][0] == end:
            end = self._free.pop(index)[1]
        if index and self._free[index - 1][1] == start:
            index -= 1
            start = self._free.pop(index)[0]
        self._free.insert(index, (start, end))


class Place(NamedTuple):
    """Where the pixels of one request are: `size` bytes of the place from `start` to `end`."""

    region: Region
    start: int
    end: int
    size: int

    def named_in(self, request: ModelInferRequest) -> bytes:
        """The serialised request, with the pixels at this place as its one input tensor."""
        parameters = request.inputs[0].parameters
        parameters["shared_memory_region"].string_param = self.region.name
        parameters["shared_memory_offset"].int64_param = self.start
        parameters["shared_memory_byte_size"].int64_param = self.size
        message: bytes = request.SerializeToString()
        return message


class SharedPixels:
    """The regions for one Triton, one at a time. Belongs to the event loop in which it is made.

    Args:
        key: with which Triton lets regions be registered.
    """

    def __init__(self, channel: Channel, key: str) -> None:
        self._channel = channel
        self._triton = GRPCInferenceServiceStub(channel)
        self._headers = ((f"triton-grpc-protocol-{KEY_NAME}", key),)
        self._owner = f"{namespace()}{os.getpid()}-{secrets.token_hex(4)}-"
        self._region: Region | None = None
        self._trouble = "not registered yet"
        self._renewal = asyncio.create_task(self._renew())

    def put(self, images: Sequence[npt.NDArray[np.uint8]]) -> Place | None:
        """Copy images of one shape; release the place after the request. None if the request must carry them."""
        if self._region is None:
            return None
        try:
            return self._region.put(images)
        except OSError as error:
            self._complain(f"/dev/shm: {error.strerror}")
            return None

    def release(self, place: Place, *, is_read: bool) -> None:
        """To be called after the request. Without `is_read`, Triton may still read the pixels."""
        if place.region is not self._region:
            return
        if is_read:
            place.region.give_back(place)
            return
        place.region.close()
        self._region = None
        if self._renewal.done():
            self._renewal = asyncio.create_task(self._renew())

    async def close(self) -> None:
        """Have Triton drop the regions that no request uses."""
        self._renewal.cancel()
        if self._region is not None:
            self._region.close()
            self._region = None
        with contextlib.suppress(AioRpcError):
            for name in await self._left():
                await self._forget(name)

    async def _renew(self) -> None:
        """Return when there is a region and Triton has dropped all others of ours."""
        while True:
            try:
                left = await self._left()
                if self._region is None and len(left) < MOST_LEFT:
                    await self._register()
                for name in left:
                    await self._forget(name)
                if self._region is not None and not left:
                    return
                await asyncio.sleep(LOOK_EVERY_S)
            except (AioRpcError, OSError) as error:
                if isinstance(error, OSError):
                    self._complain(f"/dev/shm: {error.strerror}")
                elif self._channel.get_state() is ChannelConnectivity.READY:  # else nothing reaches Triton
                    self._complain(f"Triton: {error.details()}")
                await asyncio.sleep(PAUSE_AFTER_FAILURE_S)

    async def _register(self) -> None:
        region = Region(self._owner + secrets.token_hex(16))
        request = SystemSharedMemoryRegisterRequest(
            name=region.name, key=f"/{region.name}", offset=0, byte_size=REGION_BYTES
        )
        try:
            await self._triton.SystemSharedMemoryRegister(request, metadata=self._headers, timeout=CALL_TIMEOUT_S)
        except BaseException:
            region.close()
            raise
        finally:
            region.hide()
        self._region = region
        if self._trouble:
            logger.info("Triton reads pixels from shared memory")
        self._trouble = ""

    async def _left(self) -> list[str]:
        """Regions in Triton that no gateway uses any more: our earlier ones, and those of gateways that were killed."""
        answer = await self._triton.SystemSharedMemoryStatus(
            SystemSharedMemoryStatusRequest(), metadata=self._headers, timeout=CALL_TIMEOUT_S
        )
        current = None if self._region is None else self._region.name
        return [
            name for name in answer.regions if name != current and (name.startswith(self._owner) or is_orphan(name))
        ]

    async def _forget(self, name: str) -> None:
        """Triton 24.10 refuses while a request uses the region; newer ones drop it after the last of these requests."""
        with contextlib.suppress(AioRpcError):
            await self._triton.SystemSharedMemoryUnregister(
                SystemSharedMemoryUnregisterRequest(name=name), metadata=self._headers, timeout=CALL_TIMEOUT_S
            )

    def _complain(self, reason: str) -> None:
        if reason != self._trouble:
            self._trouble = reason
            logger.warning("requests carry their pixels, because shared memory fails: %s", reason)


def namespace() -> str:
    """Prefix of the regions of gateways whose process ids mean the same here."""
    return f"deit-pixels-{Path('/proc/self/ns/pid').stat().st_ino}-"


def is_orphan(name: str) -> bool:
    """The region of a gateway that was killed."""
    pid = name.removeprefix(namespace()).partition("-")[0]
    return name.startswith(namespace()) and not Path(f"/proc/{pid}").exists()
