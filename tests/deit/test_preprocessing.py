import json

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform

from deit.preprocessing import RESAMPLING, Preprocessing, resize_and_crop
from tests.conftest import photograph

IMAGENET = Preprocessing(
    image_size=224, crop_pct=0.875, interpolation="bicubic", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)


def timm_pixels(image: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    transform = create_transform(
        preprocessing.image_size,
        is_training=False,
        interpolation=preprocessing.interpolation,
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
        normalize=False,
    )
    return transform(image).permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    "size", [(500, 375), (375, 500), (224, 224), (256, 256), (31, 97), (1, 40), (333, 221), (1500, 7)]
)
@pytest.mark.parametrize(("image_size", "crop_pct"), [(224, 0.875), (224, 0.9), (32, 1.0), (384, 1.0), (37, 0.61)])
def test_pixels_equal_timms_evaluation_transform(size: tuple[int, int], image_size: int, crop_pct: float) -> None:
    preprocessing = Preprocessing(
        image_size=image_size, crop_pct=crop_pct, interpolation="bicubic", mean=IMAGENET.mean, std=IMAGENET.std
    )
    image = photograph(*size)
    np.testing.assert_array_equal(resize_and_crop(image, preprocessing, exact=True), timm_pixels(image, preprocessing))


@pytest.mark.parametrize("interpolation", [name for name in RESAMPLING if name != "nearest"])
def test_every_interpolation_equals_timms(interpolation: str) -> None:
    preprocessing = Preprocessing(**{**IMAGENET.__dict__, "interpolation": interpolation})
    image = photograph(301, 277)
    np.testing.assert_array_equal(resize_and_crop(image, preprocessing, exact=True), timm_pixels(image, preprocessing))


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (256, 256), (31, 97)])
@pytest.mark.parametrize(("image_size", "crop_pct"), [(224, 0.875), (224, 1.0), (37, 0.61)])
def test_squashed_pixels_equal_timms(size: tuple[int, int], image_size: int, crop_pct: float) -> None:
    preprocessing = Preprocessing(
        **{**IMAGENET.__dict__, "image_size": image_size, "crop_pct": crop_pct, "crop_mode": "squash"}
    )
    image = photograph(*size)
    np.testing.assert_array_equal(resize_and_crop(image, preprocessing, exact=True), timm_pixels(image, preprocessing))


def test_a_description_without_a_crop_mode_crops_the_centre() -> None:
    """Models that were exported before there was another."""
    fields = {name: value for name, value in json.loads(IMAGENET.to_json()).items() if name != "crop_mode"}
    assert Preprocessing.from_dict(fields) == IMAGENET


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"input_size": (1, 224, 224)}, "input_size 1 x 224 x 224: must be 3 channels and a square"),
        ({"input_size": (3, 224, 112)}, "input_size 3 x 224 x 112"),
        ({"crop_mode": "border"}, "crop_mode 'border': must be one of center, squash"),
    ],
)
def test_what_timm_has_and_we_have_not_is_named(changes: dict[str, object], finding: str) -> None:
    timms = {**IMAGENET.__dict__, "input_size": (3, 224, 224)}
    assert Preprocessing.from_timm(timms) == IMAGENET
    with pytest.raises(ValueError, match=finding):
        Preprocessing.from_timm({**timms, **changes})


def test_pixels_equal_timms_on_real_photographs(shared_data) -> None:
    from training.images import ParquetImages, decode

    photographs = ParquetImages([shared_data / "imagenet" / "sample500.parquet"])
    for index in range(0, 500, 10):
        image = decode(photographs, index)
        np.testing.assert_array_equal(resize_and_crop(image, IMAGENET, exact=True), timm_pixels(image, IMAGENET))


def test_a_strip_is_resized_only_within_the_crop() -> None:
    strip = photograph(40_000, 2)  # resized whole it would be 256 x 5,120,000 pixels
    pixels = resize_and_crop(strip, IMAGENET, exact=True)
    assert pixels.shape == (224, 224, 3)
    # The crop shows 1.75 columns around the strip's middle, stretched.
    middle = np.asarray(strip)[:, 19_999:20_001].mean(axis=(0, 1))
    np.testing.assert_allclose(pixels.mean(axis=(0, 1)), middle, atol=12)  # the filter reaches into neighbours


def test_json_keeps_every_field() -> None:
    assert Preprocessing.from_json(IMAGENET.to_json()) == IMAGENET


@pytest.mark.parametrize(
    ("field", "value", "finding"),
    [
        ("image_size", 0, "image_size 0"),
        ("crop_pct", 1.2, "crop_pct 1.2"),
        ("interpolation", "area", "interpolation 'area'"),
        ("std", (0.0, 1.0, 1.0), "std above 0"),
    ],
)
def test_a_value_out_of_range_is_named(field: str, value: object, finding: str) -> None:
    with pytest.raises(ValueError, match=finding):
        Preprocessing(**{**IMAGENET.__dict__, field: value})


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ValueError, match="crop_pct"):
        Preprocessing.from_json('{"image_size": 224, "interpolation": "bicubic", "mean": [0,0,0], "std": [1,1,1]}')
