"""Small images, decoded once and kept on the device, where they are cropped and mirrored.

The loader decodes each image in every epoch; for CIFAR's 32 pixels that takes longer than training on a GPU.
"""

import logging
import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from deit.errors import DataError
from training.config import TrainConfig
from training.crops import Crops, cut, cut_padded, random_crops, random_shifts, resized_size
from training.data import NEIGHBOURS, SMALL_PX, labels_of, outlive_signals
from training.images import LabelledImages, decode
from training.sampler import Shares, epoch_order
from training.seeds import Purpose, derived_seed

logger = logging.getLogger(__name__)

DECODED_AT_ONCE = 256


class PixelBank:
    """All images of a split, decoded, on a device.

    Attributes:
        pixels: uint8 (N, H, 3, W): a row of each channel in turn, as training.crops needs them.
        labels: class indices (N,), on the device.
        undecodable: bool (N,), on the host. In place of such an image stands the next one that can be decoded, with
            its label, as in the loader's batches.
    """

    def __init__(self, images: LabelledImages, device: torch.device, *, workers: int) -> None:
        """Raises DataError where the images differ in size, or too many in a row cannot be decoded."""
        started = time.monotonic()
        pixels, self.undecodable = _decode_all(images, workers)
        labels = labels_of(images)
        for index in self.undecodable.nonzero()[:, 0].tolist():
            instead = next(
                (
                    neighbour % len(images)
                    for neighbour in range(index + 1, index + min(NEIGHBOURS, len(images)))
                    if not self.undecodable[neighbour % len(images)]
                ),
                None,
            )
            if instead is None:
                raise DataError(f"{images.source(index)} and the {NEIGHBOURS - 1} images after it cannot be decoded")
            pixels[index], labels[index] = pixels[instead], labels[instead]
        self.pixels, self.labels = pixels.to(device), labels.to(device)
        logger.info(
            "%d images of %d x %d pixels are decoded in %.1f s and take %.0f MB of %s",
            *(len(pixels), pixels.shape[3], pixels.shape[1], time.monotonic() - started),
            *(pixels.numel() / 1e6, device),
        )

    def __len__(self) -> int:
        return len(self.labels)


class BankedBatches:
    """The augmented device batches of this process, epoch by epoch, as training.data.TrainingBatches gives them, but
    with crops and mirrorings drawn for a whole epoch at once: from the seed and the epoch alone.
    """

    def __init__(self, bank: PixelBank, config: TrainConfig, shares: Shares) -> None:
        self._bank, self._config, self._shares = bank, config, shares

    def epoch(self, epoch: int, *, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The batches of an epoch from `first_step` on: images uint8 (n, 3, size, size) and class indices (n,) on the
        device; on the host the index of each image if it cannot be decoded, else -1.
        """
        bank, config, shares = self._bank, self._config, self._shares
        labels = bank.labels.cpu() if config.balanced_sampling else None
        order = epoch_order(
            len(bank), seed=config.seed, epoch=epoch, repeats=config.repeated_augmentation, labels=labels
        )
        corrupt = torch.where(bank.undecodable[order], order, -1)
        # one transfer for the epoch: one for each batch would wait for the device
        device = bank.pixels.device
        indices, crops = order.to(device), self._draw(epoch).to(device)
        make = cut_padded if config.image_size <= SMALL_PX else cut
        for step in range(first_step, len(bank) // shares.batch_size):
            start, end = step * shares.batch_size, (step + 1) * shares.batch_size
            for turn in range(shares.accumulation):
                places = slice(start + shares.part(turn), end, shares.parts)
                drawn = indices[places]
                images = make(bank.pixels[drawn], crops[places], config.image_size)
                yield images, bank.labels[drawn], corrupt[places]

    def _draw(self, epoch: int) -> Crops:
        generator = torch.Generator().manual_seed(derived_seed(self._config.seed, epoch, Purpose.CROPS))
        count, height, _, width = self._bank.pixels.shape
        size = self._config.image_size
        if size <= SMALL_PX:
            height, width = resized_size(height, width, size)
            return random_shifts(count, height, width, size=size, generator=generator)
        return random_crops(count, height, width, smallest_area=self._config.min_crop_area, generator=generator)


def banked(
    batches: Iterable[tuple[Tensor, Tensor, Tensor]], device: torch.device
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Evaluation batches, read once and kept: their pixels on the device, class and image indices on the host."""
    return [(pixels.to(device), labels, indices) for pixels, labels, indices in batches]


class _DecodedImages(Dataset[tuple[Tensor, tuple[int, int]]]):
    """Pixels (H, 3, W) of each image, and its size; no pixels where the size is not the expected one, (0, 0) where it
    cannot be decoded.
    """

    def __init__(self, images: LabelledImages, height: int, width: int) -> None:
        self._images, self._height, self._width = images, height, width

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, tuple[int, int]]:
        nothing = torch.zeros(self._height, 3, self._width, dtype=torch.uint8)
        try:
            image = decode(self._images, index)
        except DataError:
            return nothing, (0, 0)
        if image.size != (self._width, self._height):
            return nothing, image.size
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        return pixels.view(self._height, self._width, 3).transpose(1, 2), image.size


def _decode_all(images: LabelledImages, workers: int) -> tuple[Tensor, Tensor]:
    """Pixels (N, H, 3, W), and which images cannot be decoded (N,)."""
    width, height = _first_size(images)
    pixels = torch.empty(len(images), height, 3, width, dtype=torch.uint8)
    undecodable = torch.zeros(len(images), dtype=torch.bool)
    loader = DataLoader(
        _DecodedImages(images, height, width),
        batch_size=DECODED_AT_ONCE,
        num_workers=workers,
        worker_init_fn=outlive_signals,
    )
    start = 0
    for batch, (widths, heights) in loader:
        places = slice(start, start + len(batch))
        pixels[places], undecodable[places] = batch, widths == 0
        others = (widths > 0) & ((widths != width) | (heights != height))
        if others.any():
            place = int(others.int().argmax())
            raise DataError(
                f"{images.source(start + place)} has {widths[place]} x {heights[place]} pixels, the first image "
                f"{width} x {height}: --pixel-bank takes images of one size. Leave it out, or store them in one size."
            )
        start = places.stop
    return pixels, undecodable


def _first_size(images: LabelledImages) -> tuple[int, int]:
    """Width and height of the first image that can be decoded."""
    for index in range(min(NEIGHBOURS, len(images))):
        try:
            return decode(images, index).size
        except DataError:
            continue
    raise DataError(f"{images.source(0)} and the {NEIGHBOURS - 1} images after it cannot be decoded")
