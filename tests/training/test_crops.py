import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation

from tests.conftest import photograph
from training.crops import Crops, cut, cut_padded, random_crops, random_shifts


def pixels_of(images: list[Image.Image]) -> torch.Tensor:
    """As the bank stores them: (N, H, 3, W)."""
    return torch.stack([torch.from_numpy(np.asarray(image).copy()).transpose(1, 2) for image in images])


def numbered(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def boxes(crops: Crops) -> list[tuple[int, int, int, int]]:
    return list(zip(*(values.tolist() for values in (crops.top, crops.left, crops.height, crops.width)), strict=True))


@pytest.mark.parametrize(("width", "height", "size", "most", "share"), [(32, 32, 96, 1, 0.002), (150, 200, 48, 6, 0.1)])
def test_a_box_is_cut_and_resized_as_pillow_does_it(
    width: int, height: int, size: int, most: int, share: float
) -> None:
    images = [photograph(width, height, seed) for seed in range(32)]
    crops = random_crops(32, height, width, smallest_area=0.08, generator=numbered(0))
    found = cut(pixels_of(images), crops, size).permute(0, 2, 3, 1).numpy()
    expected = np.stack(
        [
            np.asarray(
                image.crop((left, top, left + across, top + down)).resize((size, size), Image.Resampling.BICUBIC)
            )[:, :: -1 if mirrored else 1]
            for image, (top, left, down, across), mirrored in zip(images, boxes(crops), crops.mirrored, strict=True)
        ]
    )
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= most
    assert (difference > 0).mean() < share


def test_boxes_are_drawn_as_timm_draws_them() -> None:
    count, height, width, scale = 20_000, 32, 48, (0.25, 1.0)
    crops = random_crops(count, height, width, smallest_area=scale[0], generator=numbered(0))
    image = Image.new("RGB", (width, height))
    random.seed(0)
    theirs = torch.tensor(
        [RandomResizedCropAndInterpolation.get_params(image, scale, (3 / 4, 4 / 3)) for _ in range(count)]
    ).double()
    ours = torch.tensor(boxes(crops)).double()
    for quantity in (
        lambda box: box[:, 0],  # top
        lambda box: box[:, 1],  # left
        lambda box: box[:, 2] * box[:, 3],  # area
        lambda box: (box[:, 3] / box[:, 2]).log(),  # aspect ratio
    ):
        found, expected = quantity(ours), quantity(theirs)
        # five standard errors of a difference of two means
        assert abs(found.mean() - expected.mean()) < 5 * expected.std() * (2 / count) ** 0.5
        assert found.std().item() == pytest.approx(expected.std().item(), rel=0.05)
    assert (ours[:, 0] + ours[:, 2]).max() == height
    assert (ours[:, 1] + ours[:, 3]).max() == width
    assert ours[:, :2].min() == 0
    assert crops.mirrored.double().mean().item() == pytest.approx(0.5, abs=0.02)


def test_where_no_box_fits_the_centre_is_taken() -> None:
    crops = random_crops(8, 10, 100, smallest_area=1.0, generator=numbered(0))
    assert set(boxes(crops)) == {(0, 43, 10, 13)}
    crops = random_crops(8, 100, 10, smallest_area=1.0, generator=numbered(0))
    assert set(boxes(crops)) == {(43, 0, 13, 10)}


def test_small_images_are_shifted_over_a_black_frame_and_never_rescaled() -> None:
    images = [photograph(32, 32, seed) for seed in range(16)]
    crops = random_shifts(16, 32, 32, size=32, generator=numbered(0))
    found = cut_padded(pixels_of(images), crops, 32).permute(0, 2, 3, 1).numpy()
    for image, (top, left, _, _), mirrored, result in zip(images, boxes(crops), crops.mirrored, found, strict=True):
        padded = np.pad(np.asarray(image), ((4, 4), (4, 4), (0, 0)))
        np.testing.assert_array_equal(result[:, :: -1 if mirrored else 1], padded[top : top + 32, left : left + 32])
    assert {0, 8} <= set(crops.top.tolist()) | set(crops.left.tolist()) <= set(range(9))
