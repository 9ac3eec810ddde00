"""A process that decodes one image after the other, for the gateway: `python -m serving.gateway.decoder_process ...`

Damage that an image does to the C code that reads it is contained here: by a crash, a limit on memory, or a limit on
CPU time. Uploads and pixels are in memory that both processes share. Messages go over a socket: the size of an upload,
its header, how to decode it and the preprocessing; and back, as JSON, how long that took, or the problem. The process
exits when the socket closes, so it never outlives its gateway.
"""

import argparse
import contextlib
import functools
import json
import mmap
import resource
import signal
import socket
import time
from pathlib import Path
from typing import Any

from deit.errors import PictureError
from deit.picture_header import Header
from deit.pictures import PictureLimits, configure_pillow, read_picture
from deit.preprocessing import Preprocessing, resize_and_crop

MESSAGE_BYTES = 2**16

# Names in the table of errors.py, which would bring 6 MiB of the web framework into each decoder.
TOO_COMPLEX, INTERNAL = "image-too-complex", "internal"


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("socket", "region", "max-pixels", "memory-limit"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--cpu-limit-s", type=float, required=True)
    given = parser.parse_args()
    # The gateway decides when to end; a signal to the whole group must not lose the current image.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    configure_pillow()
    limit_resources(given.memory_limit)
    limits = PictureLimits(max_pixels=given.max_pixels)
    with socket.socket(fileno=given.socket) as connection, mmap.mmap(given.region, 0) as region:
        connection.send(b"{}")  # ready
        while message := connection.recv(MESSAGE_BYTES):
            # By processor time, because other work on the machine is not the image's fault. SIGPROF ends the process.
            signal.setitimer(signal.ITIMER_PROF, given.cpu_limit_s)
            reply = answer(message, region, limits)
            signal.setitimer(signal.ITIMER_PROF, 0)
            connection.send(json.dumps(reply).encode())


def limit_resources(memory_bytes: int) -> None:
    with contextlib.suppress(OSError):  # when memory runs out, the kernel should kill a decoder, not the gateway
        Path("/proc/self/oom_score_adj").write_text("1000")
    used_bytes = 1024 * int(Path("/proc/self/status").read_text().partition("VmData:")[2].split()[0])
    limits = {
        resource.RLIMIT_DATA: used_bytes + memory_bytes,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 16,
    }
    for kind, limit in limits.items():
        resource.setrlimit(kind, (limit, limit))


def question(size: int, header: Header, mode: str, preprocessing: Preprocessing) -> bytes:
    """What to do with the upload of `size` bytes that lies in the region."""
    return f"{size} {json.dumps(header, separators=(',', ':'))} {mode} {written(preprocessing)}".encode()


def answer(asked: bytes, region: mmap.mmap, limits: PictureLimits) -> dict[str, Any]:
    """Decode the upload at the start of the region, and put the pixels in its place."""
    started_s = time.monotonic()
    try:
        size, header, mode, preprocessing_json = asked.split(b" ", 3)
        preprocessing = read_preprocessing(preprocessing_json)
        exact = mode == b"exact"
        shorter_px = None if exact else preprocessing.resize_px
        picture = read_picture(region[: int(size)], limits, header=Header(*json.loads(header)), shorter_px=shorter_px)
        decoded_s = time.monotonic()
        pixels = resize_and_crop(picture.image, preprocessing, full_size=picture.full_size, exact=exact)
        if pixels.nbytes > len(region):
            detail = f"{pixels.nbytes} bytes of pixels do not fit into the {len(region)} that are shared"
            return {"problem": INTERNAL, "detail": detail}
        region[: pixels.nbytes] = pixels.data.cast("B")
    except PictureError as error:
        return {"problem": error.refusal, "detail": str(error)}
    except MemoryError:
        return {"problem": TOO_COMPLEX, "detail": "the image takes more memory than an image of the largest size"}
    return {"decode": decoded_s - started_s, "preprocess": time.monotonic() - decoded_s}


@functools.lru_cache
def written(preprocessing: Preprocessing) -> str:
    return preprocessing.to_json()


@functools.lru_cache
def read_preprocessing(text: bytes) -> Preprocessing:
    return Preprocessing.from_json(text.decode())


if __name__ == "__main__":
    main()
