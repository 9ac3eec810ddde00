"""What an image file's header says about it, read from its markers in microseconds, without decoding.

- **The declared size**, for admission, and because a WebP of 38 bytes makes its library reserve two frames of any size
  as soon as it is opened.
- **The cost of decoding.** A limit on pixels does not bound the time. A progressive JPEG may hold any number of scans,
  and each is a pass over all pixels: 21 kB with 405 scans take a second, 10 MB an hour (libjpeg-turbo's report
  LJT-01-003). And Pillow reads the segments of a JPEG and the chunks of a PNG one by one in Python, holding the
  interpreter lock.

A JPEG is walked once: `read_header` stops at the first scan, and `decoding_cost` goes on from there.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from deit.avif_header import avif_size, is_avif

JPEG_SIGNATURE = b"\xff\xd8"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# Cameras put EXIF, ICC and previews before the frame; each segment holds at most 64 KiB. `read_header` reads this many
# segments and bytes of padding and then gives up, so that an event loop can afford it.
HEADER_PARTS = 256

# Honest files have up to 20 scans; libraries with a limit have 100 (libvips), 256 (nvImageCodec) and 500 (DALI).
MAX_SCANS = 64
# 25 megapixels with the 10 scans of libjpeg's default progression are 250; about 0.6 ms each.
MAX_SCAN_MEGAPIXELS = 800.0

# Encoders write PNG in chunks of 4 to 64 KiB. 100,000 empty chunks take Pillow 0.27 s, 10,000 therefore 30 ms.
MIN_PARTS_LIMIT = 4096
PARTS_PER_KIB = 1

START_OF_IMAGE, END_OF_IMAGE, START_OF_SCAN, TEMPORARY = 0xD8, 0xD9, 0xDA, 0x01
WITHOUT_LENGTH = (START_OF_IMAGE, END_OF_IMAGE, TEMPORARY)

# SOF0 to SOF15, without DHT (C4), JPG (C8) and DAC (CC), which lie in the same range; the first two are baseline and
# extended sequential.
FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
SEQUENTIAL = (0xC0, 0xC1)

# After FF: stuffing, a restart, fill
NO_MARKERS = frozenset({0x00, *range(0xD0, 0xD8), 0xFF})

BLOCK_BYTES = 2**18

Format = Literal["JPEG", "PNG", "WEBP", "AVIF"]
Size = tuple[int, int]

NOTHING = (0, 0)
"""The size of a file that ends before it declares one, or of an unknown format: it will not be decoded."""


class Header(NamedTuple):
    """Attributes:
    format: by the signature; None for any other file.
    size: width and height as stored; None if only a decoder can find out.
    scans: passes over the pixels: 1, or 0 for a JPEG without any; None where they have to be counted.
    parts: of a JPEG, the segments and bytes of padding before the first scan.
    first_scan: where a JPEG's first scan begins; None if it has none, or none in as many parts as were read.
    """

    format: Format | None
    size: Size | None
    scans: int | None = 1
    parts: int = 1
    first_scan: int | None = None

    @property
    def pixels(self) -> int | None:
        return None if self.size is None else self.size[0] * self.size[1]


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


def read_header(content: bytes) -> Header:
    """The header of a file of any kind, damaged or not."""
    if content.startswith(JPEG_SIGNATURE):
        return _jpeg_header(content, HEADER_PARTS)
    if content.startswith(PNG_SIGNATURE):
        size = int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
        return Header("PNG", size if len(content) >= 24 else NOTHING)
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return Header("WEBP", _webp_size(content) if len(content) >= 30 else NOTHING)
    if is_avif(content):
        return Header("AVIF", avif_size(content))
    return Header(None, NOTHING)


def decoding_cost(content: bytes, header: Header) -> DecodingCost:
    """The cost of the file that this is the header of; a damaged one is counted as far as a decoder would read."""
    if header.format == "PNG":
        return DecodingCost(scans=1, parts=_png_chunks(content))
    if header.format == "JPEG" and header.scans is None:
        if header.first_scan is None:  # it has more parts than `read_header` reads
            header = _jpeg_header(content, parts_limit(len(content)))
        if header.first_scan is not None and header.scans is None:
            return _cost_from_scan(content, header.first_scan, header.parts)
    return DecodingCost(header.scans or 0, header.parts)


def _webp_size(content: bytes) -> Size | None:
    """By the first chunk (RFC 9649 section 2): extended, lossless, lossy."""
    kind = content[12:16]
    if kind == b"VP8X":
        return int.from_bytes(content[24:27], "little") + 1, int.from_bytes(content[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(content[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = int.from_bytes(content[26:28], "little"), int.from_bytes(content[28:30], "little")
        return width & 0x3FFF, height & 0x3FFF
    return None


def _jpeg_header(content: bytes, most_parts: int) -> Header:
    """Read the markers as libjpeg does: skip a segment by its length, look for the next marker from there.

    Most files end this at their first scan: a sequential one that holds all components has no second (libjpeg's
    `has_multiple_scans`, jdinput.c; it calls whatever follows damage). The scans of the others have to be counted.
    """
    position, parts = len(JPEG_SIGNATURE), 0
    size: Size = NOTHING
    frames: list[tuple[int, int]] = []
    while True:
        at = next_marker(content, position, position + most_parts)
        parts += at - position  # padding
        if at + 1 >= len(content):
            return Header("JPEG", size, scans=0, parts=parts)
        parts += 1
        if parts > most_parts:
            return Header("JPEG", size if frames else None, scans=None, parts=parts)
        marker = content[at + 1]
        if marker == START_OF_SCAN:
            components = content[at + 4 : at + 5]  # after the length
            is_only = len(frames) == 1 and frames[0] in [(kind, *components) for kind in SEQUENTIAL]
            return Header("JPEG", size, scans=1 if is_only else None, parts=parts, first_scan=at)
        if marker in FRAME_HEADERS:  # length (2 bytes), precision (1), height (2), width (2), components
            frame = content[at + 2 : at + 10]
            if not frames and len(frame) >= 7:
                size = int.from_bytes(frame[5:7], "big"), int.from_bytes(frame[3:5], "big")
            frames.append((marker, *frame[7:]))
        position = after_marker(content, at)


def next_marker(content: bytes, position: int, end: int) -> int:
    """Where the next marker is; when there is none before `end`, where the search ended."""
    at = content.find(b"\xff", position, end)
    while at >= 0 and content[at + 1 : at + 2] and content[at + 1] in NO_MARKERS:
        at = content.find(b"\xff", at + 1, end)
    return at if at >= 0 else min(end, max(position, len(content)))  # the last segment may claim more than there is


def after_marker(content: bytes, at: int) -> int:
    """Where the segment of the marker at `at` ends, by its length, if it has one."""
    position = at + 2
    if content[at + 1] in WITHOUT_LENGTH:
        return position
    return position + max(2, int.from_bytes(content[position : position + 2], "big"))


def _cost_from_scan(content: bytes, position: int, parts: int) -> DecodingCost:
    """The cost from the first scan on; between its markers are pixels.

    Args:
        parts: up to and including the marker of the first scan, which is at `position`.
    """
    most_parts = parts_limit(len(content))
    scans, parts = 0, parts - 1
    for start in range(position, len(content), BLOCK_BYTES):
        markers = possible_markers(content, start)
        while (index := int(np.searchsorted(markers, position))) < len(markers):
            at = int(markers[index])
            parts += 1
            if content[at + 1] == START_OF_SCAN:
                scans += 1
            if content[at + 1] == END_OF_IMAGE or scans > MAX_SCANS or parts > most_parts:
                return DecodingCost(scans, parts)
            position = after_marker(content, at)
    return DecodingCost(scans, parts)


def possible_markers(content: bytes, start: int) -> npt.NDArray[np.int64]:
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
