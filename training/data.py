"""The batches a run reads: augmented ones to train on, the gateway's exact view to evaluate on."""

import random
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from deit.preprocessing import Preprocessing, resize_and_crop
from training.config import TrainConfig
from training.images import LabelledImages, decode


class TransformedImages(Dataset[tuple[Tensor, Tensor]]):
    """Decoded and transformed images: (uint8 (3, H, W), class index ()). Normalisation happens on the device."""

    def __init__(self, images: LabelledImages, transform: "Transform") -> None:
        self._images = images
        self._transform = transform

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._transform(decode(self._images, index)), torch.tensor(self._images.label(index))


class Transform(Protocol):
    """From an RGB image to uint8 (3, H, W)."""

    def __call__(self, image: Image.Image) -> Tensor: ...


@dataclass(frozen=True)
class EvaluationTransform:
    """Resize and crop exactly as the gateway does."""

    preprocessing: Preprocessing

    def __call__(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(resize_and_crop(image, self.preprocessing).copy()).permute(2, 0, 1)


def training_transform(config: TrainConfig, mean: tuple[float, float, float]) -> Transform:
    """Random crop, flip and RandAugment; erasing and mixing follow on the device.

    For models of at most 32 pixels images are padded by 4 and cropped, as DeiT does for CIFAR instead of a random
    resized crop (https://github.com/facebookresearch/deit/blob/main/datasets.py).
    """
    steps = create_transform(
        config.image_size,
        is_training=True,
        scale=(config.min_crop_area, 1.0),
        auto_augment=config.auto_augment,
        interpolation="bicubic",
        mean=mean,  # RandAugment fills with the mean colour
        color_jitter=None,
        re_prob=0,
        normalize=False,
    ).transforms
    if config.image_size <= 32:
        # resizing leaves an image of the right size as it is
        resize = transforms.Resize(config.image_size, transforms.InterpolationMode.BICUBIC)
        steps[:1] = [resize, transforms.RandomCrop(config.image_size, padding=4)]
    transform: Transform = transforms.Compose(steps)
    return transform


def training_batches(
    images: LabelledImages, config: TrainConfig, epoch: int, mean: tuple[float, float, float]
) -> DataLoader[tuple[Tensor, Tensor]]:
    """The shuffled and augmented batches of one epoch; equal seed and epoch give equal batches.

    A new loader each epoch, because that is what makes an epoch repeatable: its workers draw from a seed that depends
    on nothing but the run's seed and the epoch. The last, smaller batch is dropped.
    """
    return DataLoader(
        TransformedImages(images, training_transform(config, mean)),
        batch_size=config.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=config.workers,
        generator=torch.Generator().manual_seed(epoch_seed(config.seed, epoch)),
        pin_memory=torch.cuda.is_available(),
    )


def evaluation_batches(
    images: LabelledImages, preprocessing: Preprocessing, batch_size: int, workers: int
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Every image once, in order."""
    transformed = TransformedImages(images, EvaluationTransform(preprocessing))
    return DataLoader(transformed, batch_size=batch_size, num_workers=workers)


def epoch_seed(seed: int, epoch: int) -> int:
    """One seed for everything random in an epoch, different for every (seed, epoch)."""
    return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's (mixup, RandAugment) and torch's generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
