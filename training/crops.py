"""Random crops of many images at once, on any device: drawn as timm draws them, resized as Pillow resizes.

A resize is two products with matrices of filter weights, one along the rows and one along the columns, so a batch of
images with a box each is two batched matrix products; a mirrored image is one whose column weights are reversed.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

RATIOS = (3 / 4, 4 / 3)
"""Aspect ratios of random crops, as in timm and torchvision."""

ATTEMPTS = 10
"""Draws of a box before the centre is taken, as in timm and torchvision."""

PADDING = 4
"""Black pixels around an image for models of at most 32 pixels, as DeiT pads CIFAR's images."""


@dataclass(frozen=True)
class Crops:
    """Boxes and mirrorings, each (N,) and on one device.

    Attributes:
        top, left, height, width: of the box, in pixels of the image; with padding, of the padded resized image.
        mirrored: whether left and right are swapped.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    mirrored: Tensor

    def __getitem__(self, places: slice) -> "Crops":
        return Crops(*(values[places] for values in self._values()))

    def to(self, device: torch.device) -> "Crops":
        return Crops(*(values.to(device) for values in self._values()))

    def _values(self) -> tuple[Tensor, ...]:
        return self.top, self.left, self.height, self.width, self.mirrored


def random_crops(count: int, height: int, width: int, *, smallest_area: float, generator: torch.Generator) -> Crops:
    """Boxes of random area, aspect ratio and position in images of one size, each mirrored at random.

    Args:
        smallest_area: share of the image's area that a box has at least.
    """
    drawn = torch.rand(count, ATTEMPTS, 2, dtype=torch.float64, generator=generator)
    places = torch.rand(count, 2, dtype=torch.float64, generator=generator)
    mirrored = torch.rand(count, generator=generator) < 0.5
    areas = (smallest_area + (1 - smallest_area) * drawn[..., 0]) * height * width
    low, high = (math.log(ratio) for ratio in RATIOS)
    ratios = (low + (high - low) * drawn[..., 1]).exp()
    widths, heights = (areas * ratios).sqrt().round().long(), (areas / ratios).sqrt().round().long()
    fits = (widths <= width) & (heights <= height)
    first = fits.int().argmax(dim=1, keepdim=True)
    widths, heights = widths.gather(1, first)[:, 0], heights.gather(1, first)[:, 0]
    tops = (places[:, 0] * (height - heights + 1)).floor().long()
    lefts = (places[:, 1] * (width - widths + 1)).floor().long()

    central_height, central_width = _central(height, width)
    without = ~fits.any(dim=1)
    heights[without], widths[without] = central_height, central_width
    tops[without], lefts[without] = (height - central_height) // 2, (width - central_width) // 2
    return Crops(tops, lefts, heights, widths, mirrored)


def _central(height: int, width: int) -> tuple[int, int]:
    """Height and width of the box for images in which no drawn one fits."""
    low, high = RATIOS
    if width / height < low:
        return round(width / low), width
    if width / height > high:
        return height, round(height * high)
    return height, width


def random_shifts(count: int, height: int, width: int, *, size: int, generator: torch.Generator) -> Crops:
    """Positions of a square of `size` pixels in padded images of one size, each mirrored at random."""
    places = torch.rand(count, 2, dtype=torch.float64, generator=generator)
    mirrored = torch.rand(count, generator=generator) < 0.5
    sides = torch.full((count,), size)
    return Crops(
        (places[:, 0] * (height + 2 * PADDING - size + 1)).floor().long(),
        (places[:, 1] * (width + 2 * PADDING - size + 1)).floor().long(),
        sides,
        sides,
        mirrored,
    )


def cut(images: Tensor, crops: Crops, size: int) -> Tensor:
    """The boxes, resized with Pillow's bicubic filter, mirrored where asked: uint8 (N, 3, size, size).

    Pillow computes in whole numbers, so one value in 4,000 differs from Pillow's, by 1. Pillow resizes along the other
    direction first where that is less work, for boxes larger than their result; hard edges then differ by more.

    Args:
        images: uint8 (N, H, 3, W): a row of each channel in turn.
    """
    rows = resize_weights(crops.top, crops.height, images.shape[1], size)
    columns = resize_weights(crops.left, crops.width, images.shape[3], size)
    return _resample(images, rows, _mirror(columns, crops.mirrored))


def cut_padded(images: Tensor, crops: Crops, size: int) -> Tensor:
    """Images whose shorter side is resized to `size`, padded, and cut to the boxes: uint8 (N, 3, size, size).

    Args:
        images: uint8 (N, H, 3, W): a row of each channel in turn.
    """
    height, width = resized_size(images.shape[1], images.shape[3], size)
    rows = _padded_weights(crops.top, images.shape[1], height, size)
    columns = _padded_weights(crops.left, images.shape[3], width, size)
    return _resample(images, rows, _mirror(columns, crops.mirrored))


def resized_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width once the shorter side is `size`; the longer is cut, as torchvision's Resize does."""
    shorter = min(height, width)
    return int(size * height / shorter), int(size * width / shorter)


def resize_weights(starts: Tensor, lengths: Tensor, side: int, size: int) -> Tensor:
    """The weight of each pixel of an image's side in each pixel of the resized box, (N, size, side).

    Pillow's bicubic filter with a = -0.5, widened where the box is larger than its result; pixels outside of the box
    count as absent, as if it had been cut out first.
    https://github.com/python-pillow/Pillow/blob/main/src/libImaging/Resample.c

    Args:
        starts, lengths: of the boxes along this side, (N,).
    """
    device = starts.device
    pixels = torch.arange(side, device=device) - starts[:, None]  # counted from the box's start
    scale = lengths.float() / size
    centres = (torch.arange(size, device=device) + 0.5) * scale[:, None]
    distances = (pixels[:, None] + 0.5 - centres[..., None]) / scale.clamp(min=1)[:, None, None]
    inside = (pixels >= 0) & (pixels < lengths[:, None])
    weights = _bicubic(distances.abs()) * inside[:, None]
    return weights / weights.sum(dim=-1, keepdim=True)


def _bicubic(distance: Tensor) -> Tensor:
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0))


def _padded_weights(starts: Tensor, side: int, resized: int, size: int) -> Tensor:
    """As resize_weights, of the whole side resized to `resized`, padded, and cut from `starts` on."""
    whole = starts.new_zeros(1), starts.new_full((1,), side)
    weights = torch.nn.functional.pad(resize_weights(*whole, side, resized)[0], (0, 0, PADDING, PADDING))
    return weights[starts[:, None] + torch.arange(size, device=starts.device)]


def _mirror(columns: Tensor, mirrored: Tensor) -> Tensor:
    return torch.where(mirrored[:, None, None], columns.flip(1), columns)


def _resample(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Both products, each rounded to whole values as Pillow does, columns first."""
    count, height, channels, width = images.shape
    size = rows.shape[1]
    across = images.float().view(count, height * channels, width) @ columns.transpose(1, 2)
    across = across.round_().clamp_(0, 255).view(count, height, channels * size)
    down = (rows @ across).round_().clamp_(0, 255)
    return down.view(count, size, channels, size).transpose(1, 2).to(torch.uint8)
