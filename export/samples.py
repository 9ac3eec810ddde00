"""The real images on which a graph is verified and calibrated."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deit.errors import DataError
from deit.pictures import IMAGE_SUFFIXES
from deit.preprocessing import Preprocessing
from training.columns import Columns
from training.images import (
    LabelledImages,
    SomeImages,
    find_split,
    open_images,
    prepare,
    prepare_file,
    with_classes_of,
)

logger = logging.getLogger(__name__)

MOST_IMAGES = 512
MOST_CALIBRATION_IMAGES = 64
MOST_HELD_OUT = 2048

LARGEST_CORRUPT_SHARE = 0.01
"""Share of the images that may be undecodable, as in `deit train --max-corrupt-share`; one is always allowed."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Images ready for the model, uint8 (N, H, W, 3), and their classes if the data set knows the model's."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64] | None


def load_samples(
    path: Path,
    preprocessing: Preprocessing,
    count: int | None,
    *,
    label_names: tuple[str, ...] | None,
    calibrates: bool,
    columns: Columns = Columns(),  # noqa: B008  frozen
) -> tuple[Sample, Sample | None, LabelledImages | None]:
    """Images for the gate; if something `calibrates`, others for int8; and those held out to calibrate probabilities.

    With a data set, these are images of its test split, calibrated on its train split; without both splits, every
    fourth image, at most 64, is for calibration. Up to 2048 other images of the test split are held out, if they have
    labels of the model's classes: a model is overconfident on the images
    that it was trained on.

    Args:
        path: a data set, a parquet or tar file, or a folder with image files.
        label_names: the model's classes.
        columns: of the data set, if its types leave a choice.
        count: images to judge on; up to 512 when None.

    Raises:
        DataError: fewer than `count` images, or none at all.
    """
    if not path.exists():
        raise DataError(f"--images {path}: there is no such folder or file")
    if path.is_dir() and (files := sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)):
        judging, calibration = _split(len(files), calibrates)
        _refuse_too_few(path, len(judging), count)
        return (
            _unlabelled([files[index] for index in _chosen(judging, count)], preprocessing),
            _unlabelled([files[index] for index in calibration], preprocessing) if calibrates else None,
            None,
        )
    test, train = _only_train(path, columns), None
    if test is not None:  # accuracy on training images would be too high
        label_names = None
        logger.info("%s has no test split: PyTorch and the graph are compared on its training images", path)
    else:
        test = open_images(path, "test", columns)
        if label_names is not None:
            test = with_classes_of(label_names, test)
        if calibrates and path.is_dir():
            train = _train_split(path, columns)
    judging, calibration = _split(len(test), calibrates and train is None)
    _refuse_too_few(path, len(judging), count)
    chosen = _chosen(judging, count)
    is_known = label_names is not None and len(test.label_names) == len(label_names)
    sample = _prepared_sample(test, chosen, preprocessing, labelled=is_known)
    held_out = None
    if is_known and len(rest := np.setdiff1d(judging, chosen)):
        held_out = SomeImages(test, rest[_spread(len(rest), MOST_HELD_OUT)].astype(np.int32))
    if not calibrates:
        return sample, None, held_out
    if train is None:
        return sample, _prepared_sample(test, calibration, preprocessing), held_out
    calibration = _spread(len(train), MOST_CALIBRATION_IMAGES)
    return sample, _prepared_sample(train, calibration, preprocessing), held_out


def _chosen(judging: list[int], count: int | None) -> list[int]:
    return [judging[place] for place in _spread(len(judging), count or MOST_IMAGES)]


def _split(count: int, calibrates: bool) -> tuple[list[int], list[int]]:
    """Indices for the gate and for calibration, without overlap."""
    calibration = set(_spread(count, min(count // 4, MOST_CALIBRATION_IMAGES))) if calibrates else set()
    return [index for index in range(count) if index not in calibration], sorted(calibration)


def _spread(count: int, wanted: int) -> list[int]:
    """`wanted` of `count` indices, evenly: data sets are often sorted by class."""
    return sorted({index * count // wanted for index in range(wanted)}) if wanted else []


def _only_train(path: Path, columns: Columns) -> LabelledImages | None:
    """The training images of a data set without test and val; None for any other."""
    if not path.is_dir() or (path / "0").is_dir():  # ImageNet V2's folders are test images
        return None
    if any(find_split(path, split, columns) is not None for split in ("test", "val")):
        return None
    return find_split(path, "train", columns)


def _train_split(path: Path, columns: Columns) -> LabelledImages | None:
    """The train split, None for a data set to test on alone, such as ImageNet V2: its folders are judged on."""
    try:
        return find_split(path, "train", columns, unsplit=False)
    except DataError:
        return None


def _prepared_sample(
    images: LabelledImages, indices: list[int], preprocessing: Preprocessing, *, labelled: bool = False
) -> Sample:
    pixels, readable = _prepared([partial(prepare, images, index, preprocessing) for index in indices])
    labels = np.array([images.label(indices[place]) for place in readable]) if labelled else None
    return Sample(images=pixels, labels=labels)


def _unlabelled(files: list[Path], preprocessing: Preprocessing) -> Sample:
    return Sample(images=_prepared([partial(prepare_file, file, preprocessing) for file in files])[0], labels=None)


def _prepared(images: list[Callable[[], npt.NDArray[np.uint8]]]) -> tuple[npt.NDArray[np.uint8], list[int]]:
    """The images that can be decoded, (N, H, W, 3), and their positions. Raises DataError if too many cannot."""
    pixels, readable = [], []
    for place, read in enumerate(images):
        try:
            pixels.append(read())
            readable.append(place)
        except DataError as error:
            leave_out(error, damaged=place + 1 - len(readable), of=len(images))
    if not pixels:
        raise DataError("none of the images to compare on can be decoded")
    return np.stack(pixels), readable


def leave_out(error: DataError, *, damaged: int, of: int) -> None:
    """Log that an image cannot be decoded. Raises DataError if there are too many."""
    logger.warning("%s; it is skipped", error)
    if damaged > max(LARGEST_CORRUPT_SHARE * of, 1):
        raise DataError(f"{damaged} of {of} images are damaged, such as {error}: repair or remove them") from error


def _refuse_too_few(path: Path, found: int, count: int | None) -> None:
    if count is not None and found < count:
        raise DataError(f"{path} has {found} images, {count} are needed: add images, or lower --parity-images")
    if not found:
        raise DataError(f"{path} has no images to compare on")
