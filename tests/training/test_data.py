from pathlib import Path

import numpy as np
import torch

from tests.conftest import photograph
from tests.training.conftest import TINY
from training.config import TrainConfig
from training.data import EvaluationTransform, epoch_seed, evaluation_batches, training_batches, training_transform
from training.images import open_images

MEAN = (0.485, 0.456, 0.406)


def config(**changes: object) -> TrainConfig:
    return TrainConfig(
        **{"data": Path("data"), "name": "run", "image_size": 16, "batch_size": 32, "workers": 0, **changes}
    )


def batches_of(images: object, epoch: int, **changes: object) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(training_batches(images, config(**changes), epoch, MEAN))


def test_an_epoch_repeats_exactly_and_differs_from_the_next(colours_data: Path) -> None:
    images = open_images(colours_data, "train")
    first, again, following = (batches_of(images, epoch, workers=2) for epoch in (0, 0, 1))
    assert len(first) == 6
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], following[0][0])


def test_another_seed_is_another_order(colours_data: Path) -> None:
    images = open_images(colours_data, "train")
    assert not torch.equal(batches_of(images, 0, seed=1)[0][1], batches_of(images, 0, seed=2)[0][1])
    assert epoch_seed(0, 1) != epoch_seed(1, 0)


def test_evaluation_sees_every_image_once_and_as_the_gateway_does(colours_data: Path) -> None:
    images = open_images(colours_data, "test")
    batches = list(evaluation_batches(images, TINY, batch_size=32, workers=0))
    assert [len(labels) for _, labels in batches] == [32, 16]
    assert torch.cat([labels for _, labels in batches]).tolist() == [images.label(index) for index in range(48)]


def test_the_evaluation_transform_gives_channels_first() -> None:
    pixels = EvaluationTransform(TINY)(photograph(16, 16))
    np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(photograph(16, 16)))


def test_small_images_are_padded_and_cropped_but_never_rescaled() -> None:
    torch.manual_seed(0)
    transform = training_transform(config(image_size=32), MEAN)
    image = photograph(32, 32)
    pixels = np.asarray(image)
    padded = np.pad(pixels, ((4, 4), (4, 4), (0, 0)))
    windows = {
        window.tobytes()
        for top in range(9)
        for left in range(9)
        for window in (padded[top : top + 32, left : left + 32], padded[top : top + 32, left : left + 32][:, ::-1])
    }
    for _ in range(20):
        assert np.ascontiguousarray(transform(image).permute(1, 2, 0).numpy()).tobytes() in windows


def test_larger_images_are_cropped_to_the_models_size_with_rand_augment() -> None:
    transform = training_transform(config(image_size=64, auto_augment="rand-m9-mstd0.5-inc1"), MEAN)
    pixels = transform(photograph(200, 120))
    assert pixels.shape == (3, 64, 64)
    assert pixels.dtype == torch.uint8
