"""From the bytes of an upload to the pixels a model reads. The bytes decide what they are, never a name or a header.

Rules, the same for every format:
- **Formats**: JPEG (a multi-picture file counts, its first picture), PNG and WebP (the first frame of an animation).
- **Orientation**: EXIF's is applied. Broken EXIF is ignored: it never refuses a picture that decodes.
- **Transparency**: composited on white, as a browser shows it on a page.
- **16 bits**: the higher byte of each value, for grey as Pillow does it for colour; never clipped.
- **CMYK, palette, grey**: Pillow's conversion to RGB, without colour management: models were trained that way.
- **Limits**: pixels and decoding cost are checked before decoding. A truncated file is refused, not shown in part.
"""

import contextlib
import re
import warnings
from io import BytesIO
from typing import Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, JpegImagePlugin, PngImagePlugin

from serving.gateway.declared_size import declared_size
from serving.gateway.decoding_cost import JPEG_SIGNATURE, PNG_SIGNATURE, decoding_cost
from serving.gateway.errors import ImageTooComplex, ImageTooLarge, UndecodableImage, UnsupportedType

# "MPO" must not be here: Pillow then raises KeyError for whatever is not an image. `JPEG` opens such files anyway.
FORMATS = ("JPEG", "PNG", "WEBP")
OPENED_FORMATS = (*FORMATS, "MPO")

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


# Of the fast mode: libjpeg decodes at a half, a quarter or an eighth, as long as the shorter side stays this many times
# as long as the model's resize needs. tests/serving/test_fast_decoding.py measures how far that is from the exact.
FAST_MARGIN = 2


class Picture(NamedTuple):
    """Attributes:
    image: upright, in RGB.
    full_size: width and height of the picture as it was stored, upright; larger than `image` when that is a reduction.
    """

    image: Image.Image
    full_size: tuple[int, int]


def decode(content: bytes, max_pixels: int, *, shorter_px: int | None = None) -> Picture:
    """The picture in an upload.

    Args:
        shorter_px: what the shorter side is going to be resized to; given, a large JPEG is decoded at a fraction of its
            size, which is faster and not bit for bit the same. None decodes all pixels.

    Raises:
        UnsupportedType, UndecodableImage, ImageTooLarge, ImageTooComplex: by the rules above.
    """
    if not content.startswith(JPEG_SIGNATURE):  # for those Pillow makes room for a frame when it opens them
        check_size(declared_size(content) or (0, 0), max_pixels)
    cost = decoding_cost(content)
    if objection := cost.objection(len(content), pixels=0):  # before Pillow reads the segments one by one
        raise ImageTooComplex(objection)
    image = _open(content, max_pixels)
    width, height = image.size
    check_size(image.size, max_pixels)
    if objection := cost.objection(len(content), pixels=width * height):
        raise ImageTooComplex(objection)
    if shorter_px is not None:
        image.draft(None, (FAST_MARGIN * shorter_px,) * 2)  # without effect on anything but a JPEG
    try:
        image.load()
        orientation = _orientation(image)  # of a PNG only now: its EXIF may stand behind the pixels
        full_size = (height, width) if orientation in SIDEWAYS else (width, height)
        return Picture(_upright(_to_rgb(image), orientation), full_size)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders promise no type for what a broken file makes them raise
        raise UndecodableImage(f"the {image.format} image is truncated or damaged and cannot be decoded") from error


def _open(content: bytes, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(BytesIO(content), formats=FORMATS)
    except MemoryError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_large("more than Pillow opens", max_pixels) from error
    except Exception as error:  # as above
        if is_signed(content):
            raise UndecodableImage("the image is truncated or damaged: its header cannot be read") from error
        raise UnsupportedType("the body is not an image in JPEG, PNG or WebP") from error
    if image.format not in OPENED_FORMATS:
        raise UnsupportedType(f"{image.format} is not supported; send JPEG, PNG or WebP")
    return image


def is_signed(content: bytes) -> bool:
    """It begins as a JPEG, PNG or WebP does."""
    webp = content.startswith(b"RIFF") and content[8:12] == b"WEBP"
    return webp or content.startswith((JPEG_SIGNATURE, PNG_SIGNATURE))


def check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Raises ImageTooLarge."""
    width, height = size
    if width * height > max_pixels:
        raise too_large(f"{width} x {height} = {width * height / 1e6:.1f} million", max_pixels)


def too_large(found: str, max_pixels: int) -> ImageTooLarge:
    return ImageTooLarge(f"the image has {found} pixels; the limit is {max_pixels / 1e6:.1f} million")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # "I;16" and, from older Pillows, "I": 16-bit grey
        transparent = image.info.get("transparency")
        levels = np.asarray(image)
        grey = (levels >> 8).astype(np.uint8)
        if isinstance(transparent, int):
            grey[levels == transparent] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _upright(image: Image.Image, exif_orientation: int) -> Image.Image:
    return image.transpose(UPRIGHT[exif_orientation]) if exif_orientation in UPRIGHT else image


def _orientation(image: Image.Image) -> int:
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

    Pillow makes objects of all values that the tag has, of which there may be a million.
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


def configure_pillow() -> None:
    """For the whole process: a decompression bomb is an error, other oddities of uploads are not worth a log line."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
    PngImagePlugin.MAX_TEXT_MEMORY = PNG_TEXT_BYTES
    # Looks for the resolution, of which there may be a million too, when a JPEG is opened.
    JpegImagePlugin.JpegImageFile._read_dpi_from_exif = lambda _: None  # type: ignore[method-assign,assignment]
