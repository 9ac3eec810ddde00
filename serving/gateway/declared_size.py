"""The pixels that an image's header declares, read in microseconds on the event loop, before anything is decoded.

For admission only: what is refused for its size is decided by Pillow when the image is opened.
"""

from serving.gateway.decoding_cost import JPEG_SIGNATURE, PNG_SIGNATURE

# Cameras put EXIF, ICC and previews before the frame header; each segment holds at most 64 KiB.
MOST_SEGMENTS = 64

# SOF0 to SOF15, without DHT (C4), JPG (C8) and DAC (CC), which lie in the same range
FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def declared_pixels(content: bytes) -> int | None:
    """Width x height, or None when the header does not tell."""
    if content.startswith(PNG_SIGNATURE) and len(content) >= 24:
        return int.from_bytes(content[16:20], "big") * int.from_bytes(content[20:24], "big")
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP" and len(content) >= 30:
        return _webp_pixels(content)
    if content.startswith(JPEG_SIGNATURE):
        return _jpeg_pixels(content)
    return None


def _webp_pixels(content: bytes) -> int | None:
    """By the first chunk (RFC 9649 section 2): extended, lossless, lossy."""
    kind = content[12:16]
    if kind == b"VP8X":
        return (int.from_bytes(content[24:27], "little") + 1) * (int.from_bytes(content[27:30], "little") + 1)
    if kind == b"VP8L":
        bits = int.from_bytes(content[21:25], "little")
        return ((bits & 0x3FFF) + 1) * ((bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8 ":
        width, height = int.from_bytes(content[26:28], "little"), int.from_bytes(content[28:30], "little")
        return (width & 0x3FFF) * (height & 0x3FFF)
    return None


def _jpeg_pixels(content: bytes) -> int | None:
    position = len(JPEG_SIGNATURE)
    for _ in range(MOST_SEGMENTS):
        header = content[position : position + 9]
        if len(header) < 9 or header[0] != 0xFF:
            return None
        if header[1] in FRAME_HEADERS:  # length (2 bytes), precision (1), height, width
            return int.from_bytes(header[5:7], "big") * int.from_bytes(header[7:9], "big")
        position += 2 + int.from_bytes(header[2:4], "big")
    return None
