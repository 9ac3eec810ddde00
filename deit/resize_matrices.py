"""Resizing and cropping as two matrix products, to the pixels of Pillow, for engines that multiply matrices.

A resize is linear, and the same for each row and each column. Pillow resizes along one axis, rounds to 8 bits, and
resizes along the other; code that applies the matrices must do the same, as serving/embedded/resize.onnx does. The
matrices also apply the EXIF orientation, except that some images must be transposed too.
Source of the weights: https://github.com/python-pillow/Pillow/blob/main/src/libImaging/Resample.c
"""

import functools
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from deit.pictures import SIDEWAYS
from deit.preprocessing import LARGEST_RESIZED_PIXELS, Preprocessing, placement

INTERPOLATION = "bicubic"
"""The filter of DeiT's models; the only one here."""

FIXED_POINT = 2**22
"""Pillow's weights are whole multiples of its reciprocal."""

SUPPORT = 2.0
"""How far the filter reaches, in pixels of the smaller of the two images."""

# EXIF orientations in which the columns, or the rows, of the upright picture run against those that are stored
MIRRORED_COLUMNS, MIRRORED_ROWS = (2, 3, 6, 7), (3, 4, 7, 8)

# Pictures come in few sizes, those of cameras. The matrices of one of 12 megapixels take 6 MB.
KEPT = 32


class ResizeMatrices(NamedTuple):
    """Attributes:
    first: float32 (image_size, N) for the first product; each row has the weights of N pixels for one.
    second: float32 (image_size, M) for the second one.
    first_goes_down: the first product goes along the columns of the picture as it is stored, of N pixels each, and the
        second one along its rows, of M; else the other way round.
    is_transposed: the result of both has the upright picture's columns as its rows.
    """

    first: npt.NDArray[np.float32]
    second: npt.NDArray[np.float32]
    first_goes_down: bool
    is_transposed: bool


@functools.lru_cache(KEPT)
def resize_matrices(width: int, height: int, orientation: int, preprocessing: Preprocessing) -> ResizeMatrices | None:
    """What makes the model's pixels of a stored picture of this size; None where the products would not be Pillow's.

    Args:
        orientation: EXIF's.
    """
    is_sideways = orientation in SIDEWAYS
    if is_sideways:
        width, height = height, width
    resized, (left, top) = placement(width, height, preprocessing)
    if preprocessing.interpolation != INTERPOLATION or resized[0] * resized[1] > LARGEST_RESIZED_PIXELS:
        return None
    size = preprocessing.image_size
    along_rows, along_columns = _weights(width, resized[0], left, size), _weights(height, resized[1], top, size)
    if orientation in MIRRORED_COLUMNS:
        along_rows = along_rows[:, ::-1]
    if orientation in MIRRORED_ROWS:
        along_columns = along_columns[:, ::-1]
    # Found by trying Pillow 13; up to 12 it always goes along rows first.
    columns_first = height > resized[1] and height - resized[1] > 2 * (width - resized[0])
    first, second = (along_columns, along_rows) if columns_first else (along_rows, along_columns)
    return ResizeMatrices(
        np.ascontiguousarray(first), np.ascontiguousarray(second), columns_first != is_sideways, columns_first
    )


def _weights(length: int, resized: int, first: int, count: int) -> npt.NDArray[np.float32]:
    """Weights of `length` pixels in a row for `count` output pixels, from output pixel `first` on."""
    scale = length / resized
    stretch = max(scale, 1.0)
    reach = SUPPORT * stretch
    centres = (np.arange(first, first + count) + 0.5) * scale
    begins = np.maximum((centres - reach + 0.5).astype(int), 0)
    ends = np.minimum((centres + reach + 0.5).astype(int), length)
    at = begins[:, None] + np.arange(2 * math.ceil(reach) + 1)
    weights = np.where(at < ends[:, None], _bicubic((at - centres[:, None] + 0.5) / stretch), 0.0)
    matrix = np.zeros((count, length + at.shape[1]), np.float32)
    shares = weights / weights.sum(axis=1, keepdims=True)
    matrix[np.arange(count)[:, None], at] = np.round(shares * FIXED_POINT) / FIXED_POINT
    return matrix[:, :length]


def _bicubic(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keys' cubic with a = -0.5."""
    x = np.abs(distance)
    near, far = (1.5 * x - 2.5) * x * x + 1, -0.5 * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
