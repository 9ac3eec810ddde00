"""Which files another library than Pillow may decode: common JPEGs, whole, and within the limits."""

import io

import pytest
from PIL import Image

from deit.pictures import PictureLimits
from deit.plain_jpeg import PlainJpeg, plain_jpeg
from tests.conftest import encoded, photograph

LIMITS = PictureLimits(max_pixels=100_000)
PICTURE = photograph(200, 150)
CONTENT = encoded(PICTURE)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(PICTURE, exif=exif)


def of_rgb():
    """Without a change of colours, as Adobe's marker says."""
    return encoded(PICTURE, keep_rgb=True)


def sampled_by_four():
    """4:1:1, by the sampling in the frame's header."""
    at = CONTENT.index(b"\xff\xc0") + 11
    return CONTENT[:at] + b"\x41" + CONTENT[at + 1 :]


def with_a_marker_in_its_scan():
    middle = (CONTENT.index(b"\xff\xda") + len(CONTENT)) // 2
    return CONTENT[:middle] + b"\xff\xc4" + CONTENT[middle + 2 :]


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str)
def test_what_cameras_and_websites_write_is_plain(subsampling, options):
    assert plain_jpeg(encoded(PICTURE, subsampling=subsampling, **options), LIMITS) == PlainJpeg(200, 150, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_its_size_is_as_stored_and_its_orientation_that_of_exif(orientation):
    assert plain_jpeg(turned(orientation), LIMITS) == PlainJpeg(200, 150, orientation)


IN_DOUBT = {
    "nothing": b"",
    "png": encoded(PICTURE, "PNG"),
    "grey": encoded(PICTURE.convert("L")),
    "cmyk": encoded(PICTURE.convert("CMYK")),
    "mpo": encoded(PICTURE, "MPO", save_all=True, append_images=[PICTURE]),
    "rgb": of_rgb(),
    "4:1:1": sampled_by_four(),
    "without its last byte": CONTENT[:-1],
    "half": CONTENT[: len(CONTENT) // 2],
    "half, and ended twice": CONTENT[: len(CONTENT) // 2] + b"\xff\xd9\xff\xd9",
    "and another byte": CONTENT + b"\0",
    "a marker in its scan": with_a_marker_in_its_scan(),
    "more pixels than allowed": encoded(photograph(400, 300)),
}


@pytest.mark.parametrize("kind", IN_DOUBT)
def test_whatever_is_in_doubt_is_left_to_pillow(kind):
    assert plain_jpeg(IN_DOUBT[kind], LIMITS) is None


def test_the_files_above_are_what_they_are_called():
    assert Image.open(io.BytesIO(IN_DOUBT["rgb"])).info["adobe_transform"] == 0
    assert Image.open(io.BytesIO(IN_DOUBT["4:1:1"])).layer[0][1:3] == (4, 1)
