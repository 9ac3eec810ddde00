"""Decodes image files to upright RGB pixels, by one set of rules for training, evaluation and serving.

A file's format is found from its bytes, never from its name. The rules are the same for every format and every caller:
- **Orientation**: EXIF orientation is applied. Broken EXIF is ignored: an image that decodes is never refused for it.
- **Transparency**: composited on white, as a browser shows it on a page.
- **16 bits**: the high byte of each value, for grey as Pillow does it for colour; never clipped.
- **Floating point**: refused, since the value of white is unknown.
- **CMYK, palette, grey**: Pillow's conversion to RGB, without colour management: models were trained that way.
- **Several images in a file**, as in an animation: the first.
- **Damage**: a truncated file is refused, not shown in part.

The caller chooses what to accept: `PictureLimits`. `deit.preprocessing` turns the result into a model's input.
"""

import contextlib
import re
import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import Literal, NamedTuple

import numpy as np
from PIL import AvifImagePlugin, ExifTags, Image, JpegImagePlugin, PngImagePlugin

from deit.errors import PictureError
from deit.file_kinds import file_kind, rare_jpeg
from deit.picture_header import JPEG_SIGNATURE, Header, decoding_cost, read_header

# "MPO" must not be in a list of formats: Pillow then raises KeyError for whatever is not an image. "JPEG" opens such
# files anyway.
WEB_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF")
"""Formats accepted from untrusted callers: few decoders, each of them fuzzed for years."""

ALL_FORMATS = (*WEB_FORMATS, "BMP", "GIF", "PPM", "TIFF")
"""Formats accepted in the user's own data sets."""

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff"}
)
"""Suffixes by which the files of `ALL_FORMATS` are found in a folder."""

# All texts of a PNG, unpacked. Pillow allows 64 MiB, which takes it 0.14 s; captions and XMP are thousandths of that.
PNG_TEXT_BYTES = 8 * 2**20

# EXIF orientation -> what turns the stored picture upright. EXIF 2.3, tag 0x0112.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)

# EXIF's types BYTE, SHORT and LONG
INTEGER_BYTES = {1: 1, 3: 2, 4: 4}

XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')

# With `shorter_px` libjpeg decodes at a half, a quarter or an eighth, as long as the shorter side stays this many times
# as long as the model's resize needs. tests/serving/gateway/test_fast_decoding.py measures the distance from exact.
FAST_MARGIN = 2

REDUCED_JPEG_FACTOR = 8
"""In the fast mode a JPEG of one scan, such as a 200-megapixel phone makes, may have this many times `max_pixels`. It
is decoded row by row at a fraction of its size, so memory depends on the decoded size, and time on the file's size."""


@dataclass(frozen=True, kw_only=True)
class PictureLimits:
    """What a caller accepts.

    Attributes:
        max_pixels: width x height as stored, compared before anything is decoded.
        formats: by Pillow's names.
        bounds_cost: refuse files that are built to take far more time than their size suggests, before decoding. For
            the files of strangers; it takes some microseconds.
    """

    max_pixels: int
    formats: tuple[str, ...] = WEB_FORMATS
    bounds_cost: bool = True


class Picture(NamedTuple):
    """Attributes:
    image: upright, in RGB.
    full_size: width and height of the picture as it was stored, upright; larger than `image` when that is a reduction.
    """

    image: Image.Image
    full_size: tuple[int, int]


def read_picture(
    content: bytes, limits: PictureLimits, *, header: Header | None = None, shorter_px: int | None = None
) -> Picture:
    """The picture in an image file.

    Args:
        header: of `content`, where it has been read already.
        shorter_px: the length to which the shorter side will be resized; a large JPEG is then decoded at a fraction of
            its size, which is faster but not bit-identical. None decodes all pixels.

    Raises:
        PictureError: by the rules above or the limits.
    """
    image = open_picture(content, limits, header=header, reduces=shorter_px is not None)
    width, height = image.size
    if shorter_px is not None:
        image.draft(None, (FAST_MARGIN * shorter_px,) * 2)  # without effect on anything but a JPEG
        _check_size(image.size, limits.max_pixels)
    try:
        image = _loaded(image, content)
        orientation = orientation_of(image)  # of a PNG only now: its EXIF may stand behind the pixels
        full_size = (height, width) if orientation in SIDEWAYS else (width, height)
        return Picture(_upright(_to_rgb(image), orientation), full_size)
    except (MemoryError, PictureError):
        raise
    except Exception as error:  # Pillow's decoders promise no type for what a broken file makes them raise
        finding = f"the {image.format} image is truncated or damaged and cannot be decoded"
        raise PictureError("undecodable-image", _rare(content) or finding) from error


def open_picture(
    content: bytes, limits: PictureLimits, *, header: Header | None = None, reduces: bool = False
) -> Image.Image:
    """The picture in an image file with its size, and not yet with its pixels.

    Args:
        header: of `content`, where it has been read already.
        reduces: a large JPEG is going to be decoded at a fraction of its size.

    Raises:
        PictureError: by the rules above or the limits.
    """
    cost, declared_limit = None, limits.max_pixels
    if limits.bounds_cost:
        header = read_header(content) if header is None else header
        if reduces and may_be_reduced(header):
            declared_limit *= REDUCED_JPEG_FACTOR
        _check_size(header.size or (0, 0), declared_limit)  # opening a WebP already makes room for a frame
        cost = decoding_cost(content, header)
        _refuse(cost.objection(len(content), pixels=0))  # before Pillow reads the segments one by one
    image = _open(content, limits)
    width, height = image.size
    _check_size(image.size, declared_limit)
    if cost is not None:
        _refuse(cost.objection(len(content), pixels=width * height))
    return image


def may_be_reduced(header: Header) -> bool:
    return header.format == "JPEG" and header.scans == 1


def upright_rgb(image: Image.Image) -> Image.Image:
    """An image that is already open, by the rules above."""
    image.load()
    return _upright(_to_rgb(image), orientation_of(image))


def configure_pillow() -> None:
    """For a process that reads untrusted files: `PictureLimits` replaces Pillow's own limit on pixels, and warnings
    about odd files are not logged.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")
    Image.MAX_IMAGE_PIXELS = None
    PngImagePlugin.MAX_TEXT_MEMORY = PNG_TEXT_BYTES
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each core has a decoding process, and each thread takes memory
    # Called when a JPEG is opened, to find the resolution, which may have a million entries.
    JpegImagePlugin.JpegImageFile._read_dpi_from_exif = lambda _: None  # type: ignore[method-assign,assignment]


def _open(content: bytes, limits: PictureLimits) -> Image.Image:
    try:
        image = Image.open(BytesIO(content), formats=limits.formats)
    except MemoryError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureError("image-too-large", f"the image has more pixels than Pillow opens: {error}") from error
    except Exception as error:  # as above
        if read_header(content).format is not None:
            finding = "the image is truncated or damaged: its header cannot be read"
            raise PictureError("undecodable-image", _rare(content) or finding) from error
        kind = file_kind(content)
        finding = f"this is {'' if kind is None else f'{kind}: '}not an image in {_listed(limits.formats)}"
        raise PictureError("unsupported-type", finding) from error
    if image.format not in (*limits.formats, "MPO"):
        raise PictureError("unsupported-type", f"{image.format} is not supported; use {_listed(limits.formats)}")
    return image


def _rare(content: bytes) -> str | None:
    kind = rare_jpeg(content) if content.startswith(JPEG_SIGNATURE) else None
    return None if kind is None else f"this is {kind}, which is not supported; save it as a JPEG of 8 bits a channel"


def _loaded(image: Image.Image, content: bytes) -> Image.Image:
    """The opened image with its pixels.

    simplejpeg reads plain JPEGs with Pillow's library and settings, to the same bits, in less time. Any file that it
    refuses is left to Pillow, which decides whether it passes.
    """
    if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
        import simplejpeg  # here, because the benchmark's peers use this file's rules, and Pillow alone

        with contextlib.suppress(ValueError):
            pixels = simplejpeg.decode_jpeg(content, "RGB", min_width=image.width, min_height=image.height, strict=True)
            if pixels.shape[:2] == (image.height, image.width):
                decoded = Image.fromarray(pixels)
                decoded.info = image.info
                return decoded
    image.load()
    return image


def _listed(formats: tuple[str, ...]) -> str:
    *others, last = (name.replace("WEBP", "WebP") for name in formats)
    return f"{', '.join(others)} or {last}"


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise PictureError(
            "image-too-large",
            f"the image has {width} x {height} = {width * height / 1e6:.1f} million pixels; "
            f"the limit is {max_pixels / 1e6:.1f} million",
        )


def _refuse(objection: str | None) -> None:
    if objection is not None:
        raise PictureError("image-too-complex", objection)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        finding = f"the {image.format} image holds floating-point values; save it with 8 or 16 bits a channel"
        raise PictureError("undecodable-image", finding)
    if image.mode.startswith("I"):  # 16-bit grey: "I;16", or "I" in 32 bits, which are clipped to 16
        transparent = image.info.get("transparency")
        levels = np.asarray(image)
        grey = (levels.clip(0, 65535) >> 8).astype(np.uint8)
        if isinstance(transparent, int):
            grey[levels == transparent] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _upright(image: Image.Image, exif_orientation: int) -> Image.Image:
    return image.transpose(UPRIGHT[exif_orientation]) if exif_orientation in UPRIGHT else image


def orientation_of(image: Image.Image) -> int:
    """EXIF's orientation, or that of XMP, as Pillow takes them; 1 (upright) when there is none that can be read."""
    exif = image.info.get("exif")
    if exif is None and "Raw profile type exif" in image.info:  # of a PNG: three lines, then hexadecimal
        with contextlib.suppress(ValueError):
            exif = bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:]))
    found = exif_orientation(exif or b"")
    if found is None:
        xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or b""
        match = XMP_ORIENTATION.search(xmp.encode() if isinstance(xmp, str) else xmp)
        found = int(match[1]) if match else 1
    return found


def exif_orientation(exif: bytes) -> int | None:
    """The one number that matters, out of twelve bytes of the first directory (EXIF 2.3 section 4.6.2).

    Pillow makes an object of each value of the tag, and there may be a million.
    """
    start = 0
    while exif.startswith(b"Exif\0\0", start):
        start += 6
    order: Literal["little", "big"] = "little" if exif[start : start + 1] == b"I" else "big"
    directory = start + int.from_bytes(exif[start + 4 : start + 8], order)
    entries = int.from_bytes(exif[directory : directory + 2], order)
    tag = ExifTags.Base.Orientation.to_bytes(2, order)
    for at in range(directory + 2, min(directory + 2 + 12 * entries, len(exif) - 11), 12):
        if exif[at : at + 2] == tag:  # then the type, how many values (4 bytes), and the value
            value_bytes = INTEGER_BYTES.get(int.from_bytes(exif[at + 2 : at + 4], order), 0)
            return int.from_bytes(exif[at + 8 : at + 8 + value_bytes], order)
    return None
