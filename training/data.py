"""The batches of a run: augmented images to train on, and images preprocessed as by the gateway to evaluate on."""

import itertools
import logging
import signal
from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from PIL import Image, ImageOps
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp, AutoAugment
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import transforms

from deit.errors import DataError
from deit.fast_resize import CropWindow, can_resize, resize_window
from deit.preprocessing import Preprocessing
from training.config import TrainConfig
from training.images import LabelledImages, decode, prepare
from training.processes import Processes
from training.sampler import Draw, EpochSampler, Shares
from training.seeds import Purpose, derived_seed, seed_cpu

logger = logging.getLogger(__name__)

NEIGHBOURS = 100  # images tried in place of one that cannot be decoded

SMALL_PX = 32
"""Models of at most this many pixels are trained on padded crops, larger ones on resized crops."""


class AugmentedImages(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Images to train on: (uint8 (3, H, W), class index, index of the image if it cannot be decoded, else -1).

    Normalisation happens on the device. An image that cannot be decoded is replaced by the next one, so that
    batches keep their size. The draws of repeated augmentation follow each other: the image is decoded once for them.
    """

    def __init__(self, images: LabelledImages, transform: "Transform", *, seed: int) -> None:
        self._images = images
        self._transform = transform
        self._seed = seed
        self._decoded: tuple[int, Image.Image] | None = None

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
        seed_cpu(derived_seed(self._seed, draw.epoch, Purpose.IMAGE, draw.place))
        for step in range(min(NEIGHBOURS, len(self))):
            index = (draw.image + step) % len(self)
            try:
                image = self._decode(index)
            except DataError:
                continue
            label, undecodable = self._images.label(index), draw.image if step else -1
            return self._transform(image), torch.tensor(label), torch.tensor(undecodable)
        raise DataError(f"{self._images.source(draw.image)} and the {NEIGHBOURS - 1} images after it cannot be decoded")

    def _decode(self, index: int) -> Image.Image:
        if self._decoded is None or self._decoded[0] != index:
            self._decoded = (index, decode(self._images, index))
        return self._decoded[1]


class EvaluationImages(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Images preprocessed as by the gateway: (uint8 (3, H, W), class index, index of the image).

    An image that cannot be decoded is black, with the class index -1.
    """

    def __init__(self, images: LabelledImages, preprocessing: Preprocessing) -> None:
        self._images = images
        self._preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        size = self._preprocessing.image_size
        try:
            pixels = torch.from_numpy(prepare(self._images, index, self._preprocessing).copy())
        except DataError:
            return torch.zeros(3, size, size, dtype=torch.uint8), torch.tensor(-1), torch.tensor(index)
        return pixels.permute(2, 0, 1), torch.tensor(self._images.label(index)), torch.tensor(index)


class CorruptImages:
    """The images of a split that could not be decoded; more than the stated share of them stop the run."""

    def __init__(self, images: LabelledImages, largest_share: float) -> None:
        self._images = images
        self._largest_share = largest_share
        self.indices: set[int] = set()

    def add(self, indices: Iterable[int]) -> None:
        """Raises DataError, naming some of them, if there are too many."""
        new = set(indices) - self.indices
        for index in sorted(new):
            logger.warning("%s cannot be decoded and is skipped", self._images.source(index))
        self.indices |= new
        if len(self.indices) > self._largest_share * len(self._images):
            examples = ", ".join(self._images.source(index) for index in sorted(self.indices)[:3])
            raise DataError(
                f"{len(self.indices)} of {len(self._images)} images cannot be decoded, more than the share of "
                f"{self._largest_share:g} that --max-corrupt-share allows: {examples}"
                f"{', …' if len(self.indices) > 3 else ''}. Repair or remove them, or raise the share."
            )


class Transform(Protocol):
    """From an RGB image to uint8 (3, H, W)."""

    def __call__(self, image: Image.Image) -> Tensor: ...


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
    mend_posterize(steps)
    if config.image_size <= SMALL_PX:
        # resizing leaves an image of the right size as it is
        resize = transforms.Resize(config.image_size, transforms.InterpolationMode.BICUBIC)
        steps[:1] = [resize, transforms.RandomCrop(config.image_size, padding=4)]
    elif can_resize(Image.Resampling.BICUBIC):
        steps[0] = FastRandomCrop(steps[0])
    transform: Transform = transforms.Compose(steps)
    return transform


class FastRandomCrop:
    """timm's random resized crop with the same draws, but the server's resize (deit/fast_resize.py)."""

    def __init__(self, crop: RandomResizedCropAndInterpolation) -> None:
        self._size = crop.size
        self._scale, self._ratio = crop.scale, crop.ratio

    def __call__(self, image: Image.Image) -> Image.Image:
        top, left, height, width = RandomResizedCropAndInterpolation.get_params(image, self._scale, self._ratio)
        box = image.crop((left, top, left + width, top + height))  # as in timm, nothing outside the box counts
        return resize_window(box, CropWindow(0, 0, width, height), self._size, Image.Resampling.BICUBIC)


def mend_posterize(steps: list[Transform]) -> None:
    """Replace posterize by ours in timm's RandAugment, AutoAugment or AugMix."""
    for step in steps:
        nested = step.policy if isinstance(step, AutoAugment) else [getattr(step, "ops", ())]
        for operation in itertools.chain.from_iterable(nested):
            if isinstance(operation, AugmentOp) and operation.name.startswith("Posterize"):
                operation.aug_fn = posterize


def posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Keep the highest bits of each channel.

    RandAugment at magnitude 10, where the normal distribution around 9 ends, keeps none: a black image for DeiT, but an
    error of Pillow from 12 on, which timm 1.0.31 passes on.
    """
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


def labels_of(images: LabelledImages) -> Tensor:
    """The class index of each image, (N,)."""
    return torch.tensor([images.label(index) for index in range(len(images))])


class CurrentEpoch(Sampler[list[Draw]]):
    """The draws of whichever epoch is being read: workers that outlive an epoch keep their sampler."""

    def __init__(self) -> None:
        self.draws: EpochSampler | None = None

    def __iter__(self) -> Iterator[list[Draw]]:
        assert self.draws is not None  # TrainingBatches.epoch sets it before the loader asks
        return iter(self.draws)


class TrainingBatches:
    """The augmented device batches of this process, epoch by epoch; equal seed and epoch give equal batches, whatever
    the number of workers, which live as long as this object.
    """

    def __init__(
        self, images: LabelledImages, config: TrainConfig, shares: Shares, *, mean: tuple[float, float, float]
    ) -> None:
        self._images, self._config, self._shares = len(images), config, shares
        self._labels = labels_of(images) if config.balanced_sampling else None
        self._current = CurrentEpoch()
        self._loader: DataLoader[tuple[Tensor, Tensor, Tensor]] = DataLoader(
            AugmentedImages(images, training_transform(config, mean), seed=config.seed),
            batch_sampler=self._current,
            num_workers=config.workers,
            worker_init_fn=outlive_signals,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=config.workers > 0,
        )

    def epoch(self, epoch: int, *, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The batches of an epoch from `first_step` on. One epoch at a time: the next ends the last."""
        self._current.draws = EpochSampler(
            self._images,
            self._shares,
            seed=self._config.seed,
            epoch=epoch,
            repeats=self._config.repeated_augmentation,
            first_step=first_step,
            labels=self._labels,
        )
        return iter(self._loader)


def evaluation_batches(
    images: LabelledImages,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    workers: int,
    processes: Processes = Processes(),  # noqa: B008  frozen
) -> DataLoader[tuple[Tensor, Tensor, Tensor]]:
    """Every image once, in order; of several processes each takes its own images, and no image is read twice.

    Raises DataError when a process would have none.
    """
    if len(images) < processes.count:
        raise DataError(f"{len(images)} images are too few to evaluate with {processes.count} processes")
    return DataLoader(
        EvaluationImages(images, preprocessing),
        batch_size=batch_size,
        sampler=range(processes.rank, len(images), processes.count),
        num_workers=workers,
        worker_init_fn=outlive_signals,
    )


def outlive_signals(worker: int) -> None:
    """Make a worker ignore SIGTERM and Ctrl-C, which reach every process of a run.

    The training process saves its position (training.resume) and needs the worker until then. A worker still ends
    when its parent closes the loader, or has died.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
