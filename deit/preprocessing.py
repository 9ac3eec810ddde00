"""Turns an RGB image into the pixels a model reads: resize, crop the centre.

This is timm's evaluation transform without its conversion to floats: bit for bit with `exact`, otherwise within 2 of
255 levels in a fifth of the time (deit/fast_resize.py).
Mean and standard deviation are stored here too, next to the geometry, but the exported graph applies them.
Source: `transforms_imagenet_eval` in https://github.com/huggingface/pytorch-image-models/blob/main/timm/data/transforms_factory.py
with `Resize` and `CenterCrop` of torchvision.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from deit.fast_resize import CropWindow, can_resize, resize_window

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}

CROP_MODES = ("center", "squash")

# A 1 x 30,000 strip resized to 256 pixels across would be 256 x 7,680,000. Above this many pixels only the crop window
# is resized; there the result may differ from timm's in the last bit, which no photograph reaches (aspect ratio above
# 250).
LARGEST_RESIZED_PIXELS = 2**24


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What a model expects of an image.

    Attributes:
        image_size: side of the square the model reads, in pixels.
        crop_pct: the share of the resized shorter side that the crop keeps; 0.875 resizes to 256 for a 224 crop.
        crop_mode: timm's; "center" keeps the picture's proportions, "squash" resizes both sides to the same length.
        interpolation: Pillow's resampling filter by timm's name.
        mean, std: per channel in RGB order, for pixels scaled to 0..1. The exported graph applies them.
    """

    image_size: int
    crop_pct: float
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size {self.image_size}: must be at least 1 pixel")
        if not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct {self.crop_pct}: must be above 0 and at most 1")
        if self.interpolation not in RESAMPLING:
            raise ValueError(f"interpolation {self.interpolation!r}: must be one of {', '.join(RESAMPLING)}")
        if self.crop_mode not in CROP_MODES:
            raise ValueError(f"crop_mode {self.crop_mode!r}: must be one of {', '.join(CROP_MODES)}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(f"mean {self.mean} and std {self.std}: must be three numbers each, std above 0")

    @property
    def resize_px(self) -> int:
        """The shorter side after resizing, in pixels."""
        return math.floor(self.image_size / self.crop_pct)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Preprocessing":
        """Raises ValueError that names the field when a value is missing, unknown or out of range."""
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_timm(cls, config: Mapping[str, Any]) -> "Preprocessing":
        """Read timm's `pretrained_cfg`, from a model or from config.json.

        Raises:
            ValueError: the model does not read RGB squares, or crops in a way that is not supported.
            KeyError, TypeError: a field is missing or not as timm writes it.
        """
        channels, height, width = config["input_size"]
        if channels != 3 or height != width:
            raise ValueError(f"input_size {channels} x {height} x {width}: must be 3 channels and a square")
        return cls(
            image_size=int(height),
            crop_pct=float(config["crop_pct"]),
            interpolation=str(config["interpolation"]),
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            crop_mode=str(config.get("crop_mode") or "center"),
        )

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Preprocessing":
        try:
            return cls(**{**fields, "mean": tuple(fields["mean"]), "std": tuple(fields["std"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a description of preprocessing: {error}") from error


def resize_and_crop(
    image: Image.Image,
    preprocessing: Preprocessing,
    *,
    full_size: tuple[int, int] | None = None,
    exact: bool = False,
) -> npt.NDArray[np.uint8]:
    """The pixels a model reads, uint8 (image_size, image_size, 3) in RGB order, from an RGB image of any size.

    Args:
        full_size: width and height of the picture that `image` is a reduction of, by a whole number; None when it is
            the picture itself. The crop is that of the full picture.
        exact: with Pillow, as timm does. Pillow resizes too where deit/fast_resize.py cannot: on processors without its
            library, and with the filters "nearest" and "hamming".
    """
    size = preprocessing.image_size
    resampling = RESAMPLING[preprocessing.interpolation]
    width, height = full_size or image.size
    reduced_by = round(width / image.width)
    extent = width / reduced_by, height / reduced_by  # the last column and row of a reduction may be partly filled
    resized, (left, top) = placement(width, height, preprocessing)
    scale_x, scale_y = extent[0] / resized[0], extent[1] / resized[1]
    window = CropWindow(left * scale_x, top * scale_y, (left + size) * scale_x, (top + size) * scale_y)
    if not exact and can_resize(resampling):
        return np.asarray(resize_window(image, window, (size, size), resampling))
    if resized[0] * resized[1] > LARGEST_RESIZED_PIXELS:
        return np.asarray(image.resize((size, size), resampling, box=window))
    if resized != image.size or extent != image.size:
        image = image.resize(resized, resampling, box=(0, 0, *extent))
    return np.asarray(image.crop((left, top, left + size, top + size)))


def placement(width: int, height: int, preprocessing: Preprocessing) -> tuple[tuple[int, int], tuple[int, int]]:
    """Width and height of a picture after resizing, and where the crop begins there, from the left and from the top.

    The longer side is cut, not rounded. torchvision's CenterCrop rounds half to even, as Python does.
    """
    shorter_px = preprocessing.resize_px
    if preprocessing.crop_mode == "squash":
        resized = shorter_px, shorter_px
    elif width <= height:
        resized = shorter_px, int(shorter_px * height / width)
    else:
        resized = int(shorter_px * width / height), shorter_px
    size = preprocessing.image_size
    return resized, (round((resized[0] - size) / 2.0), round((resized[1] - size) / 2.0))
