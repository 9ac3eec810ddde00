"""The images of a run: for training, for choosing the best epoch, and for reporting the result."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from deit.errors import DataError, TrainingError
from deit.preprocessing import Preprocessing
from training.class_names import UnlabelledError
from training.columns import Columns
from training.config import TrainConfig
from training.images import LabelledImages, SomeImages, find_split, open_images, spread_indices, with_classes_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The images of a run, and how a model sees them.

    Attributes:
        judged_by: "val" or "test": what `judged` is, and the prefix of its numbers.
        judged: evaluated after each epoch, to choose the best.
        reported: evaluated once, at the end; None if it is the same as `judged`.
    """

    train: LabelledImages
    judged_by: str
    judged: LabelledImages
    reported: LabelledImages | None
    preprocessing: Preprocessing

    @property
    def label_names(self) -> tuple[str, ...]:
        return self.train.label_names

    def by_name(self) -> dict[str, LabelledImages]:
        """The splits as provenance.json lists them; "test" is what the result is reported on."""
        if self.reported is None:
            return {"train": self.train, "test": self.judged}
        return {"train": self.train, "val": self.judged, "test": self.reported}


def open_splits(config: TrainConfig) -> Splits:
    """The images of the run. Raises DataError or TrainingError if they cannot be read or do not fit the run."""
    tested, val = (_labelled(config.data, split, config.columns) for split in ("test", "val"))
    if config.val_share:
        train, val = held_out(config.data, config.val_share, config.columns)
    else:
        train = open_images(config.data, "train", config.columns)
    if config.train_images is not None:
        if config.train_images > len(train):
            raise DataError(f"--train-images {config.train_images}: the data set has {len(train)}")
        train = SomeImages(train, spread_indices(train, config.train_images))
    if val is None and tested is None:
        raise TrainingError(
            f"{config.data} has neither a split val nor a split test with labels: hold images out with --val-share 0.15"
        )
    if len(train) < config.batch_size:
        raise TrainingError(
            f"{config.data} has {len(train)} training images, fewer than one batch of {config.batch_size}: "
            "lower --batch-size"
        )
    judged = tested if val is None else val
    assert judged is not None
    return Splits(
        train=train,
        judged_by="test" if val is None else "val",
        judged=_with_classes_of(train, judged, config),
        reported=None if val is None or tested is None else _with_classes_of(train, tested, config),
        preprocessing=Preprocessing(
            image_size=config.image_size,
            crop_pct=config.crop_pct,
            interpolation="bicubic",
            mean=IMAGENET_DEFAULT_MEAN,
            std=IMAGENET_DEFAULT_STD,
        ),
    )


def _labelled(data: Path, split: str, columns: Columns) -> LabelledImages | None:
    if not data.is_dir():  # a single file holds the training images
        return None
    try:
        return find_split(data, split, columns)
    except UnlabelledError as error:
        logger.info("%s", error)
        return None


def held_out(data: Path, share: float, columns: Columns) -> tuple[LabelledImages, LabelledImages]:
    """The training images left to train on, and those held out: a share of each class, always the same images.

    Raises:
        TrainingError: the data has a split val, which is used to choose the epoch.
    """
    if _labelled(data, "val", columns) is not None:
        raise TrainingError(f"--val-share {share:g}: {data} already has val: leave it out")
    train = open_images(data, "train", columns)
    count = max(math.floor(share * len(train)), 1)
    held = spread_indices(train, count)
    rest = np.setdiff1d(np.arange(len(train), dtype=np.int32), held)
    logger.info("%d of %d training images are held out to choose the best epoch", count, len(train))
    return SomeImages(train, rest), SomeImages(train, held)


def _with_classes_of(train: LabelledImages, other: LabelledImages, config: TrainConfig) -> LabelledImages:
    """The images with the classes of the training images, by name: a small split may lack some."""
    only_other = sorted(set(other.label_names) - set(train.label_names))
    only_train = sorted(set(train.label_names) - set(other.label_names))
    if only_other:
        raise TrainingError(
            f"{config.data}: its splits name different classes: only val or test has {_some(only_other)}, only train "
            f"has {_some(only_train)}. Rename or move the images, so that every class has training images."
        )
    if only_train:
        logger.warning("%s: there are no validation or test images of the classes %s", config.data, _some(only_train))
    return with_classes_of(train.label_names, other)


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}" if names else "none"
