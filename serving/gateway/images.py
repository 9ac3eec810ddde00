"""From the bytes of an upload to the pixels a model reads. The bytes decide what they are, never a name or a header.

Rules, the same for every format:
- **Formats**: JPEG (a multi-picture file counts, its first picture), PNG and WebP (the first frame of an animation).
- **Orientation**: EXIF's is applied. Broken EXIF is ignored: it never refuses a picture that decodes.
- **Transparency**: composited on white, as a browser shows it on a page.
- **16 bits**: the higher byte of each value, for grey as Pillow does it for colour; never clipped.
- **CMYK, palette, grey**: Pillow's conversion to RGB, without colour management: models were trained that way.
- **Limits**: pixels and decoding cost are checked before decoding. A truncated file is refused, not shown in part.
"""

import asyncio
import os
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from deit.preprocessing import Preprocessing, resize_and_crop
from serving.gateway.decoding_cost import JPEG_SIGNATURE, PNG_SIGNATURE, decoding_cost
from serving.gateway.errors import ImageTooComplex, ImageTooLarge, UndecodableImage, UnsupportedType

# "MPO" must not be here: Pillow then raises KeyError for whatever is not an image. `JPEG` opens such files anyway.
FORMATS = ("JPEG", "PNG", "WEBP")
OPENED_FORMATS = (*FORMATS, "MPO")

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


@dataclass(frozen=True)
class ModelInput:
    """What the model reads of an image, and what making it cost.

    Attributes:
        pixels: uint8 (image_size, image_size, 3), RGB.
        stages_s: seconds by stage: waiting for a thread, decoding, preprocessing.
    """

    pixels: npt.NDArray[np.uint8]
    stages_s: dict[str, float]


class ImageDecoder:
    """Decodes uploads on as many threads as there are cores; Pillow frees the interpreter lock while it decodes."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._threads = ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="decode")

    async def model_input(self, content: bytes, preprocessing: Preprocessing) -> ModelInput:
        """Raises what `decode` raises. When the caller is cancelled, an image that still waits is not decoded."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._threads, self._decode_and_crop, content, preprocessing, time.monotonic()
        )

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)

    def _decode_and_crop(self, content: bytes, preprocessing: Preprocessing, asked_s: float) -> ModelInput:
        started_s = time.monotonic()
        image = decode(content, self._max_pixels)
        decoded_s = time.monotonic()
        pixels = resize_and_crop(image, preprocessing)
        stages_s = {
            "wait": started_s - asked_s,
            "decode": decoded_s - started_s,
            "preprocess": time.monotonic() - decoded_s,
        }
        return ModelInput(pixels, stages_s)


def decode(content: bytes, max_pixels: int) -> Image.Image:
    """The upright picture in RGB.

    Raises:
        UnsupportedType, UndecodableImage, ImageTooLarge, ImageTooComplex: by the rules above.
    """
    cost = decoding_cost(content)
    if objection := cost.objection(len(content), pixels=0):  # before Pillow reads the segments one by one
        raise ImageTooComplex(objection)
    image = _open(content, max_pixels)
    width, height = image.size
    if width * height > max_pixels:
        raise too_large(f"{width} x {height} = {width * height / 1e6:.1f} million", max_pixels)
    if objection := cost.objection(len(content), pixels=width * height):
        raise ImageTooComplex(objection)
    try:
        image.load()
        return _upright(_to_rgb(image), _orientation(image))
    except Exception as error:  # Pillow's decoders promise no type for what a broken file makes them raise
        raise UndecodableImage(f"the {image.format} image is truncated or damaged and cannot be decoded") from error


def _open(content: bytes, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(BytesIO(content), formats=FORMATS)
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
    return image.convert("RGB")


def _upright(image: Image.Image, exif_orientation: int) -> Image.Image:
    return image.transpose(UPRIGHT[exif_orientation]) if exif_orientation in UPRIGHT else image


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 (upright) when there is none that can be read."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises SyntaxError, ValueError, struct.error and others on broken EXIF
        return 1


def configure_pillow_warnings() -> None:
    """For the whole process: a decompression bomb is an error, other oddities of uploads are not worth a log line."""
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
