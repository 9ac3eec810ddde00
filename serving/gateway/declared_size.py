"""The size that an image's header declares, read in microseconds, before anything is opened or decoded.

For admission, and because a WebP of 38 bytes makes its library reserve two frames of any size when it is opened.
"""

from serving.gateway.decoding_cost import FRAME_HEADERS, JPEG_SIGNATURE, PNG_SIGNATURE, START_OF_SCAN

# Cameras put EXIF, ICC and previews before the frame header; each segment holds at most 64 KiB.
MOST_SEGMENTS = 256

# Stuffing, TEM, restarts, SOI and EOI
WITHOUT_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xDA)})


LARGE_PIXELS = 4_000_000
"""From here on an image is large: it may have to wait, or be refused, so that others need not."""

Size = tuple[int, int]


# The size of a file that ends before it states one, or has none of the formats: it will not be decoded.
NOTHING = (0, 0)


def declared_pixels(content: bytes) -> int | None:
    """Width x height, or None if only a decoder can find out."""
    size = declared_size(content)
    return None if size is None else size[0] * size[1]


def declared_size(content: bytes) -> Size | None:
    """Width and height, or None if only a decoder can find out."""
    if content.startswith(PNG_SIGNATURE) and len(content) >= 24:
        return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP" and len(content) >= 30:
        return _webp_size(content)
    if content.startswith(JPEG_SIGNATURE):
        return _jpeg_size(content)
    return NOTHING


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


def _jpeg_size(content: bytes) -> Size | None:
    """From marker to marker; what lies between is skipped, as decoders do it."""
    position = len(JPEG_SIGNATURE)
    for _ in range(MOST_SEGMENTS):
        position = content.find(b"\xff", position)
        header = content[position : position + 9]
        if position < 0 or len(header) < 9 or header[1] == START_OF_SCAN:
            return NOTHING
        if header[1] in FRAME_HEADERS:  # length (2 bytes), precision (1), height, width
            return int.from_bytes(header[7:9], "big"), int.from_bytes(header[5:7], "big")
        if header[1] == 0xFF:  # the marker may begin here
            position += 1
        elif header[1] in WITHOUT_LENGTH:
            position += 2
        else:
            position += 2 + int.from_bytes(header[2:4], "big")
    return None
