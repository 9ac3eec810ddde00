"""How far the fast resize may differ from Pillow's, over shapes, filters and photographs."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from deit.fast_resize import ALGORITHMS, CropWindow, resize_window
from deit.preprocessing import RESAMPLING, Preprocessing, resize_and_crop
from tests.conftest import photograph
from training.images import ParquetImages, decode

IMAGENET = Preprocessing(
    image_size=224, crop_pct=0.875, interpolation="bicubic", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)

# Weights of 16 bits and less, rounded once for rows and once for columns
MOST_LEVELS = 2


def differences(image, preprocessing):
    exact, fast = (resize_and_crop(image, preprocessing, exact=each).astype(int) for each in (True, False))
    assert exact.shape == fast.shape
    return np.abs(exact - fast)


@pytest.mark.parametrize(
    "size",
    [(500, 375), (375, 500), (256, 256), (224, 224), (2000, 1501), (33, 47), (1, 1), (1, 700), (900, 3), (5000, 40)],
)
def test_shapes_of_all_kinds_stay_within_two_levels(size):
    image = photograph(100, 75).resize(size)
    assert differences(image, IMAGENET).max() <= MOST_LEVELS


@pytest.mark.parametrize("interpolation", RESAMPLING)
@pytest.mark.parametrize("crop_mode", ["center", "squash"])
def test_every_filter_stays_within_two_levels(interpolation, crop_mode):
    preprocessing = Preprocessing(
        image_size=96, crop_pct=0.9, interpolation=interpolation, mean=(0.5,) * 3, std=(0.5,) * 3, crop_mode=crop_mode
    )
    found = differences(photograph(320, 213), preprocessing)
    assert found.max() <= MOST_LEVELS
    if RESAMPLING[interpolation] not in ALGORITHMS:
        assert found.max() == 0  # Pillow's own


@pytest.mark.parametrize(("side", "size"), [(224, (29, 60)), (224, (450, 900)), (448, (225, 300)), (518, (662, 800))])
def test_a_window_that_is_the_whole_image_is_not_beyond_it(side, size):
    """Where size * (extent / size) is a bit more than the extent."""
    whole = Preprocessing(image_size=side, crop_pct=1.0, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)
    image = photograph(100, 75).resize(size)
    assert differences(image, whole).max() <= MOST_LEVELS
    squashed = replace(whole, crop_mode="squash")
    assert resize_and_crop(image, squashed).shape == (side, side, 3)


def test_an_image_of_the_right_size_is_only_cropped():
    image = photograph(256, 256)
    np.testing.assert_array_equal(resize_and_crop(image, IMAGENET), np.asarray(image.crop((16, 16, 240, 240))))


def test_a_window_sees_what_lies_around_it():
    """As Pillow's box does: a white frame around a black window shows at its edge."""
    image = Image.new("RGB", (100, 100), "white")
    image.paste("black", (20, 20, 80, 80))
    window = CropWindow(20, 20, 80, 80)
    ours = np.asarray(resize_window(image, window, (30, 30), Image.Resampling.BILINEAR)).astype(int)
    pillows = np.asarray(image.resize((30, 30), Image.Resampling.BILINEAR, box=window)).astype(int)
    assert ours[0].max() > 0
    assert np.abs(ours - pillows).max() <= MOST_LEVELS


def test_thin_strips_take_little_memory():
    """25 million rows of one pixel would be resized to 6.4 billion; only the window is."""
    for size in ((1, 2_000_000), (2_000_000, 1)):
        assert resize_and_crop(Image.new("RGB", size, "red"), IMAGENET).shape == (224, 224, 3)


def test_photographs_hardly_change(shared_data):
    photographs = ParquetImages([shared_data / "imagenet" / "sample500.parquet"])
    found = [differences(decode(photographs, index), IMAGENET) for index in range(0, 500, 10)]
    assert max(each.max() for each in found) <= MOST_LEVELS
    assert np.mean([(each > 0).mean() for each in found]) <= 0.01  # seen: 0.0033
