"""What an image costs to decode, counted from its markers without decoding it.

A limit on pixels does not bound the time. A progressive JPEG may hold any number of scans, and each is a pass over all
pixels: 21 kB with 405 scans take a second, 10 MB an hour (libjpeg-turbo's report LJT-01-003). And Pillow reads the
segments of a JPEG and the chunks of a PNG one by one in Python, holding the interpreter lock.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

JPEG_SIGNATURE = b"\xff\xd8"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# Honest files have up to 20 scans; libraries with a limit have 100 (libvips), 256 (nvImageCodec) and 500 (DALI).
MAX_SCANS = 64
# 25 megapixels with the 10 scans of libjpeg's default progression are 250; about 0.6 ms each.
MAX_SCAN_MEGAPIXELS = 800.0

# Encoders write PNG in chunks of 4 to 64 KiB. 100,000 empty chunks take Pillow 0.27 s, 10,000 therefore 30 ms.
MIN_PARTS_LIMIT = 4096
PARTS_PER_KIB = 1

START_OF_IMAGE, END_OF_IMAGE, START_OF_SCAN, TEMPORARY = 0xD8, 0xD9, 0xDA, 0x01

# SOF0 to SOF15, without DHT (C4), JPG (C8) and DAC (CC), which lie in the same range; the first two are baseline and
# extended sequential.
FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
SEQUENTIAL = (0xC0, 0xC1)

# After FF: stuffing, a restart, fill
NO_MARKERS = frozenset({0x00, *range(0xD0, 0xD8), 0xFF})

BLOCK_BYTES = 2**18


@dataclass(frozen=True)
class DecodingCost:
    """Counted until the limit is passed, so that a bomb costs no more than any other file.

    Attributes:
        scans: passes over all pixels; 1 for anything but a JPEG.
        parts: segments or chunks that are read one by one, and bytes of padding between those of a JPEG's header.
    """

    scans: int
    parts: int

    def objection(self, size_bytes: int, pixels: int) -> str | None:
        """Why an image with this cost is not decoded, or None."""
        if self.parts > parts_limit(size_bytes):
            return f"the image has more than {parts_limit(size_bytes)} parts, which is the limit for its size"
        megapixels = pixels / 1e6
        scans_limit = min(MAX_SCANS, int(MAX_SCAN_MEGAPIXELS / megapixels)) if megapixels else MAX_SCANS
        if self.scans > scans_limit:
            size = f" of {megapixels:.1f} megapixels" if pixels else ""
            return f"the JPEG{size} has more than {scans_limit} scans, which is the limit"
        return None


def parts_limit(size_bytes: int) -> int:
    return max(MIN_PARTS_LIMIT, PARTS_PER_KIB * size_bytes // 1024)


def decoding_cost(content: bytes) -> DecodingCost:
    """The cost of a file of any type; a damaged one is counted as far as a decoder would read."""
    if content.startswith(JPEG_SIGNATURE):
        return _jpeg_cost(content)
    if content.startswith(PNG_SIGNATURE):
        return DecodingCost(scans=1, parts=_png_chunks(content))
    return DecodingCost(scans=1, parts=1)


def _jpeg_cost(content: bytes) -> DecodingCost:
    """Walk the markers as libjpeg does: skip a segment by its length, look for the next marker from there.

    Most files end this at their first scan: a sequential one that holds all components has no second (libjpeg's
    `has_multiple_scans`, jdinput.c; it calls whatever follows damage). The others are read to their end.
    """
    most_parts = parts_limit(len(content))
    position, parts = len(JPEG_SIGNATURE), 0
    frames: list[tuple[int, int]] = []
    while parts <= most_parts:
        at = _next_marker(content, position, position + most_parts)
        parts += at - position  # padding
        if at + 1 >= len(content):
            break
        parts += 1
        marker = content[at + 1]
        position = at + 2
        if marker == START_OF_SCAN:
            components = content[position + 2 : position + 3]  # after the length
            if len(frames) == 1 and frames[0] in [(kind, *components) for kind in SEQUENTIAL]:
                return DecodingCost(scans=1, parts=parts)
            return _cost_from_scan(content, at, parts - 1)
        if marker == END_OF_IMAGE:
            break
        if marker in FRAME_HEADERS:  # length (2 bytes), precision (1), height (2), width (2), components
            frames.append((marker, *content[position + 7 : position + 8]))
        if marker not in (START_OF_IMAGE, TEMPORARY):
            position += max(2, int.from_bytes(content[position : position + 2], "big"))
    return DecodingCost(scans=0, parts=parts)


def _next_marker(content: bytes, position: int, end: int) -> int:
    """Where the next marker is; when there is none before `end`, where the search ended."""
    at = content.find(b"\xff", position, end)
    while at >= 0 and content[at + 1 : at + 2] and content[at + 1] in NO_MARKERS:
        at = content.find(b"\xff", at + 1, end)
    return at if at >= 0 else min(end, len(content))


def _cost_from_scan(content: bytes, position: int, parts: int) -> DecodingCost:
    """With what stands from the first scan on; what lies between its markers are pixels."""
    most_parts = parts_limit(len(content))
    scans = 0
    for start in range(position, len(content), BLOCK_BYTES):
        markers = _possible_markers(content, start)
        while (index := int(np.searchsorted(markers, position))) < len(markers):
            at = int(markers[index])
            parts += 1
            marker = content[at + 1]
            position = at + 2
            if marker == START_OF_SCAN:
                scans += 1
            if marker == END_OF_IMAGE or scans > MAX_SCANS or parts > most_parts:
                return DecodingCost(scans, parts)
            if marker not in (START_OF_IMAGE, TEMPORARY):
                position += max(2, int.from_bytes(content[position : position + 2], "big"))
    return DecodingCost(scans, parts)


def _possible_markers(content: bytes, start: int) -> npt.NDArray[np.int64]:
    """Where, in the block from `start`, FF is followed by neither stuffing (00), fill (FF) nor a restart (D0 to D7).

    By numpy, because a regular expression takes a second for ten megabytes of FF.
    """
    block = np.frombuffer(content[start : start + BLOCK_BYTES + 1], np.uint8)
    at = np.flatnonzero((block[:-1] == 0xFF) & (block[1:] != 0xFF))
    second = block[at + 1]
    found: npt.NDArray[np.int64] = start + at[(second != 0) & (second & 0xF8 != 0xD0)]
    return found


def _png_chunks(content: bytes) -> int:
    """A chunk is its length (4 bytes), its type, its data and a checksum: 12 bytes and the data."""
    most_parts = parts_limit(len(content))
    chunks = 0
    position = len(PNG_SIGNATURE)
    while position < len(content) and chunks <= most_parts:
        chunks += 1
        position += 12 + int.from_bytes(content[position : position + 4], "big")
    return chunks
