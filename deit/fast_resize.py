"""Resizing with SIMD instructions: Pillow's filters, five times as fast, within 2 of 255 levels.

Pillow resizes along rows first, rounds, and then resizes along columns. So does this module, in two calls; a single
call would start with the columns and change a fifth of the values. The remaining difference comes from shorter filter
weights: 0.33 % of the values of photographs differ, by at most 2 (tests/deit/test_fast_resize.py). Where width and
height change by different factors Pillow may go along columns first; a few values then differ by more.

cykooz_resizer is the binding of the Rust crate fast_image_resize by its author. It has wheels only for x86-64.
Source: https://github.com/Cykooz/fast_image_resize
"""

import math
from typing import NamedTuple

from PIL import Image

try:
    from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer
except ImportError:
    IS_AVAILABLE = False
else:
    IS_AVAILABLE = True
    RESIZER = Resizer()
    ALGORITHMS = {
        Image.Resampling.BOX: ResizeAlg.convolution(FilterType.box),
        Image.Resampling.BILINEAR: ResizeAlg.convolution(FilterType.bilinear),
        Image.Resampling.BICUBIC: ResizeAlg.convolution(FilterType.catmull_rom),  # a = -0.5, as in Pillow
        Image.Resampling.LANCZOS: ResizeAlg.convolution(FilterType.lanczos3),
    }

FILTER_RADIUS = 3
"""Radius of the widest filter, lanczos, in pixels of the smaller of the two images."""


class CropWindow(NamedTuple):
    """A rectangle of an image, in pixels, which may be fractions."""

    left: float
    top: float
    right: float
    bottom: float


def can_resize(resampling: Image.Resampling) -> bool:
    """Whether this machine has the library, and the library has the filter."""
    return IS_AVAILABLE and resampling in ALGORITHMS


def resize_window(
    image: Image.Image, window: CropWindow, size: tuple[int, int], resampling: Image.Resampling
) -> Image.Image:
    """The window of an RGB image, resized to `size` (width, height), as `Image.resize(size, resampling, box=window)`.

    Values outside the window, but inside the image, count where the filter reaches them.
    """
    width, height = size
    # the product of a scale and a size may exceed the image by the last bit
    right, bottom = min(window.right, image.width), min(window.bottom, image.height)
    # only the rows that the second call reads
    reach = FILTER_RADIUS * max(1.0, (bottom - window.top) / height) + 1
    first = max(0, math.floor(window.top - reach))
    rows = min(image.height, math.ceil(bottom + reach)) - first
    columns = (window.left, right - window.left)
    narrowed = _resized(image, columns, (first, rows), (width, rows), ALGORITHMS[resampling])
    return _resized(narrowed, (0, width), (window.top - first, bottom - window.top), size, ALGORITHMS[resampling])


def _resized(
    image: Image.Image,
    columns: tuple[float, float],
    rows: tuple[float, float],
    size: tuple[int, int],
    algorithm: "ResizeAlg",
) -> Image.Image:
    """`columns` and `rows`: the first one and their number, whose sum may exceed the image by the last bit, too."""
    (left, width), (top, height) = columns, rows
    box = CropBox(left, top, min(width, image.width - left), min(height, image.height - top))
    result = Image.new("RGB", size)
    RESIZER.resize_pil(image, result, ResizeOptions(resize_alg=algorithm, crop_box=box))
    return result
