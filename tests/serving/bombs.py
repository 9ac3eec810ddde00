"""Small files that are built to cost far more than they weigh: `python -m tests.serving.bombs FOLDER` writes them.

Each names the problem that refuses it. Costs in brackets are what an unprotected Pillow 13 pays, where it was measured.
"""

import io
import struct
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from PIL import Image

MEBIBYTE = 2**20
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Bomb(NamedTuple):
    problem: str
    make: Callable[[], bytes]


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def png_chunk(name: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *chunks: bytes, bits: int = 8, colour: int = 0, data: bytes | None = None) -> bytes:
    """A PNG of this header; `chunks` come before its pixels, which are few unless `data` holds them."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(width + 1), 9) if data is None else data)
    return PNG_SIGNATURE + b"".join([png_chunk(b"IHDR", header), *chunks, pixels, png_chunk(b"IEND")])


def flat_png(side: int, *, bits: int = 1) -> bytes:
    """All pixels are there: a row of zeros, over and over."""
    compress = zlib.compressobj(9)
    row = bytes(1 + side * bits // 8)
    data = b"".join(compress.compress(row) for _ in range(side)) + compress.flush()
    return png(side, side, bits=bits, data=data)


def scan_bomb(side: int, scans: int) -> bytes:
    """A flat progressive JPEG whose last scan is repeated (libjpeg-turbo's LJT-01-003)."""
    content = encoded(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    last_scan = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last_scan * (scans - content.count(b"\xff\xda")) + content[-2:]


def jpeg_of_declared_size(width: int, height: int) -> bytes:
    content = encoded(Image.new("L", (64, 64), 128), "JPEG")
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]


def jpeg_with(segments: bytes) -> bytes:
    content = encoded(Image.new("L", (64, 64), 128), "JPEG")
    return content[:2] + segments + content[2:]


def webp_of_declared_size(width: int, height: int, kind: bytes) -> bytes:
    """Extended (VP8X), lossless (VP8L) or lossy (VP8), with nothing behind its header."""
    if kind == b"VP8X":
        body = bytes([0b10]) + bytes(3) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    elif kind == b"VP8L":
        body = b"\x2f" + ((width - 1) | (height - 1) << 14).to_bytes(4, "little") + bytes(8)
    else:
        body = b"\x30\x01\x00\x9d\x01\x2a" + struct.pack("<HH", width, height) + bytes(16)
    chunk = kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def animated_png(frames: int) -> bytes:
    control = [
        png_chunk(b"fcTL", struct.pack(">IIIIIHHBB", 2 * index, 8, 8, 0, 0, 1, 100, 0, 0)) for index in range(frames)
    ]
    data = [png_chunk(b"fdAT", struct.pack(">I", 2 * index + 1) + zlib.compress(bytes(72))) for index in range(frames)]
    body = b"".join(each for pair in zip(control, data, strict=True) for each in pair)
    return png(8, 8, png_chunk(b"acTL", struct.pack(">II", frames, 0)), body)


def gif_of_declared_size(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0" + bytes(6) + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;"


def directory(*entries: tuple[int, int, int], data: bytes = b"") -> bytes:
    """EXIF of these entries: tag, type, and how many values, all of which are `data`."""
    offset = 8 + 2 + 12 * len(entries) + 4
    written = b"".join(struct.pack(">HHII", *entry, offset) for entry in entries)
    return b"MM\0*" + struct.pack(">IH", 8, len(entries)) + written + bytes(4) + data


def segments(marker: int, prefix: bytes, data: bytes) -> bytes:
    """Data in as many segments of a JPEG as it takes."""
    size = 65_533 - len(prefix)
    parts = [prefix + data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(struct.pack(">BBH", 0xFF, marker, 2 + len(part)) + part for part in parts)


ORIENTATION, RESOLUTION, RESOLUTION_UNIT, RATIONAL, SHORT = 0x0112, 0x011A, 0x0128, 5, 3
RATIONALS = struct.pack(">II", 1, 1) * 400_000

COMMENT, APP13, DHT = b"\xff\xfe\x00\x02", b"\xff\xed\x00\x02", b"\xff\xc4\x00\x02"
TEXT_1_MIB = zlib.compress(bytes(MEBIBYTE), 9)

TOO_LARGE, TOO_COMPLEX, DAMAGED, UNSUPPORTED = (
    "image-too-large",
    "image-too-complex",
    "undecodable-image",
    "unsupported-type",
)

BOMBS: Mapping[str, Bomb] = {
    # pixels in a file of nothing: 25 megapixels are allowed, these have more
    "png-1-bit-89-megapixels": Bomb(TOO_LARGE, lambda: flat_png(9456)),  # 11 kB [1.2 s, 432 MB]
    "png-declares-2147483647-squared": Bomb(TOO_LARGE, lambda: png(2**31 - 1, 2**31 - 1, data=b"")),
    "png-declares-one-row-of-100000000": Bomb(TOO_LARGE, lambda: png(10**8, 1, data=b"")),
    "jpeg-declares-65500-squared": Bomb(TOO_LARGE, lambda: jpeg_of_declared_size(65_500, 65_500)),
    "jpeg-declares-14143-squared": Bomb(TOO_LARGE, lambda: jpeg_of_declared_size(14_143, 14_143)),
    "webp-extended-16384-squared": Bomb(TOO_LARGE, lambda: webp_of_declared_size(16_384, 16_384, b"VP8X")),
    "webp-lossless-16384-squared": Bomb(TOO_LARGE, lambda: webp_of_declared_size(16_384, 16_384, b"VP8L")),
    "webp-lossy-16383-squared": Bomb(TOO_LARGE, lambda: webp_of_declared_size(16_383, 16_383, b"VP8 ")),
    "gif-4-gigapixels": Bomb(UNSUPPORTED, lambda: gif_of_declared_size(65_535, 65_535)),
    # passes over the pixels
    "jpeg-405-scans-4-megapixels": Bomb(TOO_COMPLEX, lambda: scan_bomb(2000, 405)),  # 21 kB [1.0 s]
    "jpeg-105-scans-24-megapixels": Bomb(TOO_COMPLEX, lambda: scan_bomb(4900, 105)),  # 98 kB [1.8 s]
    "jpeg-40-scans-24-megapixels": Bomb(TOO_COMPLEX, lambda: scan_bomb(4900, 40)),
    "jpeg-10000-scans": Bomb(TOO_COMPLEX, lambda: scan_bomb(256, 10_000)),
    # parts that a decoder reads one by one
    "jpeg-5-megabytes-of-fill": Bomb(TOO_COMPLEX, lambda: jpeg_with(b"\xff" * 5 * MEBIBYTE)),  # [1.9 s]
    "jpeg-100000-comments": Bomb(TOO_COMPLEX, lambda: jpeg_with(COMMENT * 100_000)),  # [0.1 s]
    "jpeg-200000-app13": Bomb(TOO_COMPLEX, lambda: jpeg_with(APP13 * 200_000)),
    "jpeg-30000-huffman-tables": Bomb(TOO_COMPLEX, lambda: jpeg_with(DHT * 30_000)),
    "png-100000-texts": Bomb(TOO_COMPLEX, lambda: png(8, 8, png_chunk(b"tEXt") * 100_000)),  # [0.2 s]
    "png-100000-unknown-chunks": Bomb(TOO_COMPLEX, lambda: png(8, 8, png_chunk(b"abCd") * 100_000)),  # [0.3 s]
    "png-100000-empty-pixel-chunks": Bomb(TOO_COMPLEX, lambda: png(8, 8, png_chunk(b"IDAT") * 100_000)),  # [0.1 s]
    "png-10000-animation-frames": Bomb(TOO_COMPLEX, lambda: animated_png(10_000)),
    # directories with more values than anybody needs
    "png-orientation-of-400000-rationals": Bomb(  # 3 MB [1.3 s]
        "", lambda: png(8, 8, png_chunk(b"eXIf", directory((ORIENTATION, RATIONAL, 400_000), data=RATIONALS)))
    ),
    "jpeg-resolution-of-400000-rationals": Bomb(
        "",
        lambda: jpeg_with(
            segments(
                0xE1,
                b"Exif\0\0",
                directory((RESOLUTION, RATIONAL, 400_000), (RESOLUTION_UNIT, SHORT, 1), data=RATIONALS),
            )
        ),
    ),
    # compressed once more
    "png-80-texts-of-a-megabyte": Bomb(DAMAGED, lambda: png(8, 8, png_chunk(b"zTXt", b"a\0\0" + TEXT_1_MIB) * 80)),
    "png-profile-of-64-megabytes": Bomb(
        DAMAGED, lambda: png(8, 8, png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(64 * MEBIBYTE), 9)))
    ),
    "png-pixels-far-beyond-its-size": Bomb(
        "", lambda: png(8, 8, data=zlib.compress(bytes(72) + bytes(64 * MEBIBYTE), 9))
    ),
}
"""By name; where the problem is empty, the picture is as good as any and the bomb does not go off."""


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, bomb in BOMBS.items():
        (folder / name).write_bytes(bomb.make())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
