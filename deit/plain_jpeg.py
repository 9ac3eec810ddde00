"""Decides which JPEGs a library other than Pillow may decode, because both give the same pixels: `plain_jpeg`.

Pillow still reads the header, so the rules of `deit.pictures` for size, cost and orientation apply. A doubtful file is
not plain: the caller then decodes it with `deit.pictures`, which may refuse it.
"""

from dataclasses import dataclass

import numpy as np
from PIL import JpegImagePlugin

from deit.errors import PictureError
from deit.picture_header import BLOCK_BYTES, END_OF_IMAGE, START_OF_SCAN, possible_markers, read_header
from deit.pictures import PictureLimits, open_picture, orientation_of

DEFINE_HUFFMAN, DEFINE_QUANTIZATION, DEFINE_RESTART, COMMENT = 0xC4, 0xDB, 0xDD, 0xFE
BETWEEN_SCANS = (DEFINE_HUFFMAN, START_OF_SCAN, DEFINE_QUANTIZATION, DEFINE_RESTART, COMMENT)

# The first component as (horizontal, vertical) samples for one of the other two: 4:4:4, 4:2:2, 4:2:0
SUBSAMPLINGS = ((1, 1), (2, 1), (2, 2))


@dataclass(frozen=True)
class PlainJpeg:
    """Attributes:
    width, height: as stored, in pixels.
    orientation: EXIF's, 1 to 8.
    """

    width: int
    height: int
    orientation: int


def plain_jpeg(content: bytes, limits: PictureLimits) -> PlainJpeg | None:
    """What a decoder of plain JPEGs must know of this file; None for any other file, and for one beyond the limits."""
    header = read_header(content)
    if header.format != "JPEG" or header.first_scan is None:
        return None
    try:
        image = open_picture(content, limits, header=header)
    except PictureError:
        return None
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or image.format != "JPEG" or image.mode != "RGB":
        return None
    (first, *sampling, _), *others = image.layer
    is_common = tuple(sampling) in SUBSAMPLINGS and all(each[1:3] == (1, 1) for each in others)
    # Unusual component names, or Adobe's marker, may mean RGB, which libraries interpret differently.
    is_ycbcr = (first, *(each[0] for each in others)) == (1, 2, 3) and image.info.get("adobe_transform", 1) == 1
    if not (is_common and is_ycbcr and _is_whole(content, header.first_scan)):
        return None
    return PlainJpeg(*image.size, orientation_of(image))


def _is_whole(content: bytes, first_scan: int) -> bool:
    """Whether nothing follows but scans, what may stand between them, and the end, which is that of the file.

    A file that was cut off or damaged mostly fails this, and not every library notices.
    """
    position, marker = first_scan, None
    for start in range(first_scan, len(content), BLOCK_BYTES):
        markers = possible_markers(content, start)
        while (index := int(np.searchsorted(markers, position))) < len(markers):
            at = int(markers[index])
            if marker not in (None, START_OF_SCAN) and at != position:
                return False
            marker = content[at + 1]
            if marker == END_OF_IMAGE:
                return at + 2 == len(content)
            if marker not in BETWEEN_SCANS:
                return False
            position = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return False
