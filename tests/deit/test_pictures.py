"""The rules by which an image file becomes RGB pixels, on pictures made for each rule."""

import io
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from deit.errors import PictureError
from deit.pictures import UPRIGHT, PictureLimits, exif_orientation, read_picture
from tests.conftest import encoded, photograph
from tests.serving.bombs import scan_bomb

pytestmark = pytest.mark.usefixtures("pillow_warnings_as_served")

LIMITS = PictureLimits(max_pixels=25_000_000)
ONE_MEGAPIXEL = PictureLimits(max_pixels=1_000_000)
PNG_HEADER_BYTES = 33  # signature and IHDR


def png_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def refusal(content, limits=LIMITS):
    """Why it is refused, and in which words."""
    with pytest.raises(PictureError) as caught:
        read_picture(content, limits)
    return caught.value.refusal, str(caught.value)


def pixels(content):
    image = read_picture(content, LIMITS).image
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.fixture(scope="module")
def picture():
    return photograph(96, 64)


@pytest.mark.parametrize(("file_format", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_a_lossless_file_decodes_to_the_picture(picture, file_format, options):
    np.testing.assert_array_equal(pixels(encoded(picture, file_format, **options)), np.asarray(picture))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "quality": 95}])
def test_a_jpeg_decodes_as_pillow_decodes_it(picture, options):
    content = encoded(picture, "JPEG", **options)
    np.testing.assert_array_equal(pixels(content), np.asarray(Image.open(io.BytesIO(content))))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_every_exif_orientation_ends_upright(picture, orientation, file_format):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = picture if orientation == 1 else picture.transpose(inverse(UPRIGHT[orientation]))
    options = {"quality": 95, "subsampling": 0} if file_format == "JPEG" else {"lossless": True}
    if file_format == "PNG":
        options = {}
    content = encoded(stored, file_format, exif=exif, **options)
    assert pixels(content).shape == (64, 96, 3)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
    np.testing.assert_array_equal(pixels(content), expected)
    # JPEG loses a little; a wrong turn differs by far more
    assert np.abs(pixels(content).astype(int) - np.asarray(picture)).mean() < 6


def inverse(transpose):
    turns = {
        Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
        Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
    }
    return turns.get(transpose, transpose)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_is_none_is_ignored(picture, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    np.testing.assert_array_equal(pixels(encoded(picture, "PNG", exif=exif)), np.asarray(picture))


def test_exif_in_every_byte_order_and_integer_type_is_read(picture):
    for order, head in (("little", b"II*\0"), ("big", b"MM\0*")):
        for kind, width in ((1, 1), (3, 2), (4, 4)):
            entry = [0x0112.to_bytes(2, order), kind.to_bytes(2, order), (1).to_bytes(4, order)]
            value = (6).to_bytes(width, order).ljust(4, b"\0")
            exif = b"".join([head, (8).to_bytes(4, order), (1).to_bytes(2, order), *entry, value, bytes(4)])
            assert exif_orientation(exif) == exif_orientation(b"Exif\0\0" + exif) == 6
            content = encoded(picture, "PNG", exif=exif)
            assert pixels(content).shape == (96, 64, 3)


@given(st.sampled_from([b"", b"Exif\0\0", b"II*\0\x08\0\0\0\xff\xff", b"MM\0*\0\0\0\x08"]), st.binary(max_size=60))
def test_nonsense_for_exif_has_an_orientation_or_none(beginning, rest):
    assert exif_orientation(beginning + rest) is None or exif_orientation(beginning + rest) >= 0


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12"]
)
def test_broken_exif_never_refuses_a_picture(picture, exif):
    assert pixels(encoded(picture, "JPEG", exif=exif)).shape == (64, 96, 3)


def test_a_million_fractions_in_exif_are_not_read(picture):
    """Pillow would take seconds for them; the orientation behind them is read."""
    count = 1_000_000
    fractions = struct.pack("<HHII", 0x011A, 5, count, 38)
    orientation = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    content = encoded(picture, "PNG", exif=b"II*\0\x08\0\0\0\x02\0" + fractions + orientation + bytes(4 + 8 * count))
    started_s = time.process_time()
    assert pixels(content).shape == (96, 64, 3)
    assert time.process_time() - started_s < 0.5


def test_cmyk_becomes_rgb(picture):
    content = encoded(picture.convert("CMYK"), "JPEG", quality=95)
    assert Image.open(io.BytesIO(content)).mode == "CMYK"
    assert np.abs(pixels(content).astype(int) - np.asarray(picture)).mean() < 3


def test_a_palette_becomes_its_colours(picture):
    indexed = picture.quantize(32)
    np.testing.assert_array_equal(pixels(encoded(indexed, "PNG")), np.asarray(indexed.convert("RGB")))


def test_grey_becomes_three_equal_channels(picture):
    grey = np.asarray(picture.convert("L"))
    np.testing.assert_array_equal(pixels(encoded(picture.convert("L"), "PNG")), np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_transparency_is_composited_on_white(picture, file_format):
    transparent = picture.copy()
    transparent.putalpha(Image.linear_gradient("L").resize(picture.size))
    options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    alpha = np.asarray(transparent)[..., 3:].astype(float) / 255
    expected = np.asarray(picture) * alpha + 255 * (1 - alpha)
    # Pillow composites in integers
    assert np.abs(pixels(encoded(transparent, file_format, **options)) - expected).max() <= 1


def test_an_opaque_alpha_channel_changes_nothing(picture):
    opaque = picture.copy()
    opaque.putalpha(255)
    np.testing.assert_array_equal(pixels(encoded(opaque, "PNG")), np.asarray(picture))


def test_a_transparent_palette_entry_is_white():
    indexed = Image.new("P", (4, 4), 1)
    indexed.putpalette([0, 0, 0, 200, 0, 0])
    assert (pixels(encoded(indexed, "PNG", transparency=1)) == 255).all()
    assert (pixels(encoded(indexed, "PNG", transparency=0)) == [200, 0, 0]).all()


def test_sixteen_bit_grey_keeps_its_higher_byte():
    levels = np.linspace(0, 65535, 64 * 96).reshape(64, 96).astype(np.uint16)
    content = encoded(Image.fromarray(levels), "PNG")
    np.testing.assert_array_equal(pixels(content)[..., 0], levels >> 8)


def test_a_transparent_level_of_sixteen_bit_grey_is_white():
    content = encoded(Image.fromarray(np.array([[0, 700], [1000, 65535]], np.uint16)), "PNG")
    transparent_level = png_chunk(b"tRNS", struct.pack(">H", 1000))  # Pillow writes none for this mode
    content = content[:PNG_HEADER_BYTES] + transparent_level + content[PNG_HEADER_BYTES:]
    assert pixels(content)[..., 0].tolist() == [[0, 2], [255, 255]]


def test_the_first_frame_of_an_animation_counts(picture):
    frames = [picture, Image.new("RGB", picture.size, "red")]
    content = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    np.testing.assert_array_equal(pixels(content), np.asarray(picture))


def test_the_first_picture_of_a_multi_picture_file_counts(picture):
    content = encoded(picture, "MPO", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert Image.open(io.BytesIO(content)).format == "MPO"
    assert pixels(content).shape == (64, 96, 3)


def test_bytes_after_the_image_are_ignored(picture):
    content = encoded(picture, "JPEG")
    np.testing.assert_array_equal(pixels(content + b"\xff\xda" * 10_000), pixels(content))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_thin_and_tiny_pictures_decode(size):
    assert pixels(encoded(Image.new("RGB", size), "PNG")).shape == (size[1], size[0], 3)


@pytest.mark.parametrize(
    ("file_format", "named"), [("GIF", "a GIF: "), ("BMP", "a BMP: "), ("TIFF", "a TIFF"), ("ICO", ""), ("PPM", "")]
)
def test_other_formats_are_unsupported(picture, file_format, named):
    found, finding = refusal(encoded(picture, file_format))
    assert found == "unsupported-type"
    assert finding.startswith(f"this is {named}")
    assert finding.endswith("not an image in JPEG, PNG, WebP or AVIF")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "a HEIC picture, as iPhones take them; send it as JPEG"),
        (b"\0\0\0\x14ftypmif1\0\0\0\0heix" + bytes(100), "a HEIC picture"),
        (b"\0\0\0\x14ftypisom\0\0\0\0mp42" + bytes(100), "a video"),
        (b"\xff\x0a" + bytes(100), "a JPEG XL"),
        (b"%PDF-1.7\n", "a PDF"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>', "an XML or HTML text"),
        (b"/9j/4AAQSkZJRgABAQAAAQABAAD", "a JPEG in base64"),
    ],
)
def test_what_the_library_cannot_read_is_named(content, named):
    found, finding = refusal(content)
    assert (found, finding.startswith(f"this is {named}")) == ("unsupported-type", True), finding


@pytest.mark.parametrize(
    ("marker", "bits", "named"),
    [
        (0xC1, 12, "a JPEG of 12 bits a channel"),
        (0xC0, 12, "a JPEG of 12 bits a channel"),
        (0xC3, 16, "a lossless JPEG of 16 bits a channel"),
        (0xC3, 8, "a lossless JPEG of 8 bits a channel"),
        (0xC5, 8, "a hierarchical JPEG"),
        (0xF7, 8, "a JPEG-LS"),
    ],
)
def test_a_jpeg_of_a_rare_kind_is_named(marker, bits, named):
    """The kind stands in the frame; the rest is that of a usual JPEG."""
    content = bytearray(encoded(photograph(96, 64), comment=b"\xff\xc0 is no frame here"))
    at = content.index(b"\xff\xc0\0\x11")
    content[at + 1], content[at + 4] = marker, bits
    expected = f"this is {named}, which is not supported; save it as a JPEG of 8 bits a channel"
    assert refusal(bytes(content)) == ("undecodable-image", expected)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_a_truncated_file_is_refused_not_shown_in_part(file_format, share):
    content = encoded(photograph(400, 300), file_format)
    assert refusal(content[: int(len(content) * share)])[0] == "undecodable-image"


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_too_many_pixels_are_refused(file_format):
    found, finding = refusal(encoded(Image.new("L", (1001, 1000)), file_format), ONE_MEGAPIXEL)
    assert found == "image-too-large"
    assert "1001 x 1000 = 1.0 million" in finding


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "AVIF"])
def test_pixels_are_counted_before_decoding(file_format):
    content = encoded(Image.new("L", (1001, 1000)), file_format)
    # not enough of it to decode
    assert refusal(content[: len(content) // 2 + 200], ONE_MEGAPIXEL)[0] == "image-too-large"


@pytest.mark.parametrize("width", [10_000, 20_000, 100_000])
def test_a_decompression_bomb_is_too_large(width):
    """100, 200 and 1,000 megapixels: named, before Pillow warns of the first and refuses the others itself."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, 10_000, 1, 0, 0, 0, 0))
    content = encoded(Image.new("1", (16, 16)), "PNG")
    found, finding = refusal(content[:8] + header + content[PNG_HEADER_BYTES:])
    assert found == "image-too-large"
    assert f"{width} x 10000" in finding


def test_oddities_of_uploads_raise_no_warning(picture):
    content = encoded(picture.quantize(8), "PNG", transparency=bytes(range(8)))
    with warnings.catch_warnings(record=True) as caught:
        pixels(content)
    assert not caught


def test_a_scan_bomb_is_refused():
    found, finding = refusal(scan_bomb(2000, scans=405))
    assert found == "image-too-complex"
    assert "more than 64 scans" in finding
