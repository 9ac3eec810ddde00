from pathlib import Path

import pytest
import torch
from torch import Tensor

from deit.errors import DataError
from tests.conftest import photograph
from tests.training.conftest import TINY
from tests.training.test_data import MEAN, config, equal
from tests.training.test_images import image_folder
from training.data import TrainingBatches, evaluation_batches
from training.images import LabelledImages, open_images
from training.pixel_bank import BankedBatches, PixelBank, banked
from training.sampler import Shares

CPU = torch.device("cpu")


def banked_batches(
    images: LabelledImages,
    epoch: int,
    first_step: int = 0,
    *,
    workers: int = 0,
    processes: int = 1,
    rank: int = 0,
    **changes: object,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    settings = config(**changes)
    accumulation = 2 // processes
    shares = Shares(batch_size=settings.batch_size, processes=processes, rank=rank, accumulation=accumulation)
    bank = PixelBank(images, CPU, workers=workers)
    return list(BankedBatches(bank, settings, shares).epoch(epoch, first_step=first_step))


@pytest.mark.parametrize("image_size", [16, 48])
@pytest.mark.parametrize("repeats", [1, 3])
def test_an_epoch_reads_the_images_that_the_loader_reads_in_its_order(
    colours_data: Path, image_size: int, repeats: int
) -> None:
    images = open_images(colours_data, "train")
    asked = config(image_size=image_size, repeated_augmentation=repeats)
    shares = Shares(batch_size=32, processes=1, rank=0, accumulation=2)
    loaded = list(TrainingBatches(images, asked, shares, mean=MEAN).epoch(1))
    found = list(BankedBatches(PixelBank(images, CPU, workers=0), asked, shares).epoch(1))
    assert len(found) == len(loaded) == 12
    for (pixels, labels, undecodable), (other_pixels, other_labels, _) in zip(found, loaded, strict=True):
        assert pixels.dtype == torch.uint8
        assert pixels.shape == other_pixels.shape == (16, 3, image_size, image_size)
        assert torch.equal(labels, other_labels)
        assert undecodable.tolist() == [-1] * 16
        # the colour that names the class survives any crop
        assert torch.equal(
            pixels.float().mean(dim=(2, 3)).argmax(dim=1), other_pixels.float().mean(dim=(2, 3)).argmax(dim=1)
        )


def test_an_epoch_repeats_exactly_from_any_step_and_differs_from_the_next(colours_data: Path) -> None:
    images = open_images(colours_data, "train")
    first = banked_batches(images, 0, image_size=48)
    assert equal(banked_batches(images, 0, image_size=48, workers=2), first)
    assert equal(banked_batches(images, 0, first_step=4, image_size=48), first[8:])
    assert not torch.equal(banked_batches(images, 1, image_size=48)[0][0], first[0][0])
    assert not torch.equal(banked_batches(images, 0, image_size=48, seed=1)[0][1], first[0][1])


def test_two_processes_get_what_one_gets_in_two_turns(colours_data: Path) -> None:
    images = open_images(colours_data, "train")
    alone = banked_batches(images, 0, image_size=48)
    for rank in (0, 1):
        assert equal(banked_batches(images, 0, image_size=48, processes=2, rank=rank), alone[rank::2])


def test_a_corrupt_image_is_replaced_as_the_loader_does(tmp_path: Path) -> None:
    file = image_folder(tmp_path) / "train" / "cat" / "2.jpeg"
    file.write_bytes(file.read_bytes()[:200])
    images = open_images(tmp_path, "train")
    found = banked_batches(images, 0, batch_size=6)
    shares = Shares(batch_size=6, processes=1, rank=0, accumulation=2)
    loaded = list(TrainingBatches(images, config(batch_size=6), shares, mean=MEAN).epoch(0))
    for (_, labels, undecodable), (_, other_labels, other_undecodable) in zip(found, loaded, strict=True):
        assert torch.equal(labels, other_labels)
        assert torch.equal(undecodable, other_undecodable)
    assert max(undecodable.max() for _, _, undecodable in found) == 2


def test_images_of_several_sizes_are_refused_by_name(tmp_path: Path) -> None:
    image_folder(tmp_path)
    photograph(40, 31).save(tmp_path / "train" / "dog" / "1.jpeg")
    with pytest.raises(DataError, match=r"dog/1\.jpeg has 40 x 31 pixels, the first image 40 x 30: --pixel-bank takes"):
        PixelBank(open_images(tmp_path, "train"), CPU, workers=0)


def test_a_data_set_without_a_readable_image_is_an_error(tmp_path: Path) -> None:
    for file in (image_folder(tmp_path) / "train").rglob("*.jpeg"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match="images after it cannot be decoded"):
        PixelBank(open_images(tmp_path, "train"), CPU, workers=0)


def test_randaugment_is_refused() -> None:
    with pytest.raises(ValueError, match="--pixel-bank does not support --auto-augment rand-m9"):
        config(pixel_bank=True, auto_augment="rand-m9")


def test_banked_evaluation_batches_are_the_loaders(colours_data: Path) -> None:
    batches = evaluation_batches(open_images(colours_data, "test"), TINY, batch_size=32, workers=0)
    assert equal(banked(batches, CPU), list(batches))
