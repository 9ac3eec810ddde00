import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.data import create_transform

from deit.errors import DataError
from tests.conftest import photograph
from tests.training.conftest import TINY
from tests.training.test_images import image_folder
from training import data
from training.config import TrainConfig
from training.data import (
    AugmentedImages,
    CorruptImages,
    TrainingBatches,
    evaluation_batches,
    mend_posterize,
    training_transform,
)
from training.images import decode, open_images
from training.processes import Processes
from training.sampler import Draw, Shares
from training.seeds import Purpose, derived_seed, seed_cpu

MEAN = (0.485, 0.456, 0.406)


def config(**changes: object) -> TrainConfig:
    return TrainConfig(
        **{"data": Path("data"), "name": "run", "image_size": 16, "batch_size": 32, "workers": 0, **changes}
    )


def batches_of(images: object, epoch: int, first_step: int = 0, **changes: object) -> list[list[torch.Tensor]]:
    shares = Shares(batch_size=32, processes=1, rank=0, accumulation=1)
    return list(TrainingBatches(images, config(**changes), shares, mean=MEAN).epoch(epoch, first_step=first_step))


def equal(first: list[list[torch.Tensor]], second: list[list[torch.Tensor]]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True)
    )


def test_an_epoch_repeats_exactly_with_any_number_of_workers_and_differs_from_the_next(colours_data: Path) -> None:
    images = open_images(colours_data, "train")
    first, again, following = batches_of(images, 0), batches_of(images, 0, workers=2), batches_of(images, 1)
    assert len(first) == 6
    assert equal(first, again)
    assert not torch.equal(first[0][0], following[0][0])


@pytest.mark.parametrize("workers", [0, 2])
def test_one_loader_gives_the_epochs_that_new_ones_would(colours_data: Path, workers: int) -> None:
    images = open_images(colours_data, "train")
    shares = Shares(batch_size=32, processes=1, rank=0, accumulation=1)
    loader = TrainingBatches(images, config(workers=workers), shares, mean=MEAN)
    assert equal(list(loader.epoch(0, first_step=2)), batches_of(images, 0)[2:])
    assert equal(list(loader.epoch(1)), batches_of(images, 1))


def test_an_epoch_goes_on_from_any_step(colours_data: Path) -> None:
    images = open_images(colours_data, "train")
    assert equal(batches_of(images, 0)[4:], batches_of(images, 0, first_step=4))


def test_another_seed_is_another_order(colours_data: Path) -> None:
    images = open_images(colours_data, "train")
    assert not torch.equal(batches_of(images, 0, seed=1)[0][1], batches_of(images, 0, seed=2)[0][1])


@pytest.fixture
def corrupt_data(tmp_path: Path) -> Path:
    """Six images to train on, one of them cut short, and one cut short of the six to test on."""
    image_folder(tmp_path)
    for file in (tmp_path / "train" / "cat" / "1.jpeg", tmp_path / "val" / "dog" / "2.jpeg"):
        file.write_bytes(file.read_bytes()[:200])
    return tmp_path


def test_a_corrupt_image_is_replaced_by_the_next_and_told(corrupt_data: Path) -> None:
    images = open_images(corrupt_data, "train")
    shares = Shares(batch_size=6, processes=1, rank=0, accumulation=1)
    ((pixels, labels, undecodable),) = TrainingBatches(images, config(batch_size=6), shares, mean=MEAN).epoch(0)
    assert pixels.shape == (6, 3, 16, 16)
    assert sorted(labels.tolist()) == [0, 0, 0, 1, 1, 1]
    assert undecodable[undecodable >= 0].tolist() == [1]


def test_a_corrupt_image_counts_for_nothing_in_evaluation(corrupt_data: Path) -> None:
    images = open_images(corrupt_data, "test")
    ((_, labels, indices),) = evaluation_batches(images, TINY, batch_size=8, workers=0)
    assert labels.tolist() == [0, 0, 0, 1, 1, -1]
    assert indices.tolist() == [0, 1, 2, 3, 4, 5]


def test_too_many_corrupt_images_are_named(corrupt_data: Path) -> None:
    images = open_images(corrupt_data, "train")
    CorruptImages(images, 0.2).add([1])
    with pytest.raises(DataError, match=r"1 of 6 images .* share of 0\.1 .*train/cat/1\.jpeg\. Repair"):
        CorruptImages(images, 0.1).add([1])


def test_a_data_set_without_a_readable_image_is_an_error(corrupt_data: Path) -> None:
    shutil.rmtree(corrupt_data / "train" / "dog")
    for file in (corrupt_data / "train" / "cat").iterdir():
        file.write_bytes(b"")
    images = open_images(corrupt_data, "train")
    shares = Shares(batch_size=2, processes=1, rank=0, accumulation=1)
    with pytest.raises(DataError, match="images after it cannot be decoded"):
        list(TrainingBatches(images, config(batch_size=2), shares, mean=MEAN).epoch(0))


def test_evaluation_sees_every_image_once_and_as_the_gateway_does(colours_data: Path) -> None:
    images = open_images(colours_data, "test")
    batches = list(evaluation_batches(images, TINY, batch_size=32, workers=0))
    assert [len(labels) for _, labels, _ in batches] == [32, 16]
    assert torch.cat([labels for _, labels, _ in batches]).tolist() == [images.label(index) for index in range(48)]


def test_processes_share_the_evaluation_without_reading_an_image_twice(colours_data: Path) -> None:
    images = open_images(colours_data, "test")
    seen = [
        index
        for rank in range(5)
        for _, _, indices in evaluation_batches(images, TINY, batch_size=4, workers=0, processes=Processes(rank, 5))
        for index in indices.tolist()
    ]
    assert sorted(seen) == list(range(48))
    with pytest.raises(DataError, match="48 images are too few to evaluate with 49 processes"):
        evaluation_batches(images, TINY, batch_size=4, workers=0, processes=Processes(0, 49))


def test_the_evaluation_gives_channels_first(tmp_path: Path) -> None:
    folder = tmp_path / "test" / "photograph"
    folder.mkdir(parents=True)
    photograph(16, 16).save(folder / "0.png")
    ((pixels, _, _),) = evaluation_batches(open_images(tmp_path, "test"), TINY, batch_size=1, workers=0)
    np.testing.assert_array_equal(pixels[0].permute(1, 2, 0).numpy(), np.asarray(photograph(16, 16)))


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


@pytest.mark.parametrize(
    ("is_fast", "auto_augment", "mean_levels"),
    # Pillow may go along columns first where the sides change by different factors; RandAugment turns a level into many
    [(False, "rand-m9-mstd0.5-inc1", 0), (True, None, 0.5)],
)
def test_the_pixels_are_those_of_timms_own_loader(
    is_fast: bool, auto_augment: str | None, mean_levels: float, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same seeds, so that comparing a recipe with timm's compares nothing else but the resize."""
    monkeypatch.setattr(data, "can_resize", lambda _: is_fast)
    images = open_images(shared_data / "imagenet" / "sample500.parquet", "test")
    settings = config(image_size=224, auto_augment=auto_augment)
    ours = AugmentedImages(images, training_transform(settings, MEAN), seed=0)
    timms = create_transform(
        224,
        is_training=True,
        auto_augment=auto_augment,
        color_jitter=None,
        interpolation="bicubic",
        use_prefetcher=True,
    )
    mend_posterize(timms.transforms)
    for place in range(24):
        pixels, label, _ = ours[Draw(image=20 * place, epoch=2, place=place)]
        seed_cpu(derived_seed(0, 2, Purpose.IMAGE, place))
        theirs = torch.as_tensor(timms(decode(images, 20 * place)))
        assert (pixels.float() - theirs.float()).abs().mean() <= mean_levels  # another crop differs by dozens
        assert label == images.label(20 * place)


def test_the_draws_of_one_image_decode_it_once_and_differ(colours_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    monkeypatch.setattr(data, "decode", lambda images, index: decoded.append(index) or decode(images, index))
    (batch, *_) = batches_of(open_images(colours_data, "train"), 0, repeated_augmentation=3)
    assert len(decoded) == len(set(decoded)) == 64  # 192 draws an epoch
    assert not torch.equal(batch[0][0], batch[0][1])


@pytest.mark.parametrize("policy", ["v0", "original", "augmix"])
def test_auto_augments_other_kinds_survive(policy: str) -> None:
    """AutoAugment's policy v0 posterizes to zero bits in one of 29 draws."""
    torch.manual_seed(0)
    seed_cpu(0)
    transform = training_transform(config(image_size=64, auto_augment=policy), MEAN)
    image = photograph(64, 64)
    assert all(transform(image).shape == (3, 64, 64) for _ in range(300))


def test_rand_augment_at_its_strongest_survives() -> None:
    """Posterize keeps no bit at magnitude 10, which Pillow refuses."""
    torch.manual_seed(0)
    transform = training_transform(config(image_size=64, auto_augment="rand-m10-inc1-n30"), MEAN)
    assert transform(photograph(64, 64)).shape == (3, 64, 64)
