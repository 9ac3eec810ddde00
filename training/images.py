"""Data sets: labelled images by split, decoded but not transformed.

Layouts, each with the splits train, val and test, or some of them:
- parquet: `train*.parquet` (training.parquet_images);
- tar shards: `train*.tar` (training.tar_images);
- a list: `train.csv` (training.file_images);
- class folders: `train/<class name>/*` (training.file_images).
The files may also be in a folder `train`, or all splits in one sub-folder such as `data`, as on the Hugging Face Hub.
"""

import contextlib
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from deit.errors import DataError, PictureError
from deit.model_input import model_input
from deit.pictures import ALL_FORMATS, PictureLimits, read_picture
from deit.preprocessing import Preprocessing
from training.class_names import Indices, UnlabelledError
from training.columns import Columns
from training.file_images import LEFTOVERS, class_folders, image_files, read_class_folders, read_csv, read_devkit
from training.parquet_images import ParquetImages
from training.tar_images import TarImages

logger = logging.getLogger(__name__)

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
"""Names of each split, as whole words in file and folder names: train-00000-of-00002, imagenet1k-train-0001."""

TABLES = (".parquet", ".tar", ".csv")

LIMITS = PictureLimits(max_pixels=178_956_970, formats=ALL_FORMATS, bounds_cost=False)
"""The user's own files may have any format and cost; the limit is Pillow's own."""


class LabelledImages(Protocol):
    """Encoded images with class indices."""

    label_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def encoded(self, index: int) -> bytes:
        """The image file's bytes."""
        ...

    def label(self, index: int) -> int: ...

    def file_name(self, index: int) -> str:
        """The name that the image's file has, or had when the data set was made."""
        ...

    def source(self, index: int) -> str:
        """The image's location, for error messages."""
        ...


def with_classes_of(label_names: tuple[str, ...], images: LabelledImages) -> LabelledImages:
    """The images with the classes of a model, in its order, where it knows all of theirs by name.

    Otherwise they stay as they are: classes of the same number are then compared by their index, which is logged.
    """
    if not label_names or label_names == images.label_names:
        return images
    if set(images.label_names) <= set(label_names):
        return SomeImages(images, np.arange(len(images), dtype=np.int32), label_names)
    if len(images.label_names) == len(label_names):
        logger.warning(
            "the model's first class is %r, the data's is %r: classes are compared by index",
            *(label_names[0], images.label_names[0]),
        )
    return images


class SomeImages:
    """Some of the images in the given order, with the same classes or with those of another split."""

    def __init__(self, images: LabelledImages, indices: Indices, label_names: tuple[str, ...] | None = None) -> None:
        """Raises DataError when an image's class is not among `label_names`, or is there twice."""
        self._images, self._indices = images, indices
        self.label_names = images.label_names if label_names is None else label_names
        self._labels = list(range(len(self.label_names)))
        if self.label_names == images.label_names:  # two classes may have one name: ImageNet has two cranes
            return
        for names in (images.label_names, self.label_names):
            if repeated := next((name for name in images.label_names if names.count(name) > 1), None):
                raise DataError(
                    f"{names.count(repeated)} classes are called {repeated!r}, so the classes of two sets of images "
                    "cannot be matched by name: give each a different name"
                )
        places = {name: place for place, name in enumerate(self.label_names)}
        if unknown := [name for name in images.label_names if name not in places]:
            raise DataError(f"its classes {', '.join(unknown[:3])} are not among the {len(places)} others")
        self._labels = [places[name] for name in images.label_names]

    def __len__(self) -> int:
        return len(self._indices)

    def encoded(self, index: int) -> bytes:
        return self._images.encoded(int(self._indices[index]))

    def label(self, index: int) -> int:
        return self._labels[self._images.label(int(self._indices[index]))]

    def file_name(self, index: int) -> str:
        return self._images.file_name(int(self._indices[index]))

    def source(self, index: int) -> str:
        return self._images.source(int(self._indices[index]))


def spread_indices(images: LabelledImages, count: int) -> Indices:
    """The indices of `count` images, in order: each class keeps its share, spread evenly over its images, so that no
    class is lost whether the data set is sorted or its classes alternate.
    """
    labels = np.array([images.label(index) for index in range(len(images))])
    by_class = np.argsort(labels, kind="stable")
    return np.sort(by_class[np.arange(count) * len(images) // count]).astype(np.int32)


def open_images(data: Path, split: str, columns: Columns = Columns()) -> LabelledImages:  # noqa: B008  frozen
    """The images of one split: "train", "val" or "test".

    "test" means the images that results are reported on: the test split, or the validation split if there is no test
    split or only one without labels, as in ImageNet and competitions. For "test", `data` may also be a folder whose
    folders are numbered by class, like ImageNet V2's. A parquet, tar or CSV file serves as train or test, whichever is
    requested; a folder of class folders without splits is "train".

    Raises:
        DataError: the folder or the split is missing, has an unknown layout, or is empty.
        UnlabelledError: the split exists, but has no labels.
    """
    if data.is_file() and split in ("train", "test") and data.suffix in TABLES:
        return _filled(_read_files([data], columns), data, split)
    if not data.is_dir():
        raise DataError(f"{data} is not a folder. --data takes a folder with the splits train and test.")
    if split == "test" and (data / "0").is_dir():
        return _filled(read_class_folders(data), data, split)
    unlabelled: UnlabelledError | None = None
    for name in ("test", "val") if split == "test" else (split,):
        try:
            found = find_split(data, name, columns)
        except UnlabelledError as error:
            logger.info("%s", error)
            unlabelled = error
            continue
        if found is not None:
            return found
    if unlabelled is not None:
        raise unlabelled
    names = " or ".join(SPLITS[name][0] for name in (("test", "val") if split == "test" else (split,)))
    raise DataError(
        f"{data} has no split {names}: neither {split}*.parquet, {split}*.tar or {split}.csv, nor a folder {split} "
        f"with a folder for each class. It has {_contents(data)}."
    )


def find_split(data: Path, split: str, columns: Columns, *, unsplit: bool = True) -> LabelledImages | None:
    """The images of exactly this split, None if there is none. Raises DataError as `open_images`.

    Args:
        unsplit: take a folder of class folders without splits for "train".
    """
    # other folders, such as lists of other tasks, do not matter if the split was found above
    places = [data] if _is_there(data, split) else [each for each in _sub_folders(data) if _is_there(each, split)]
    if len(places) > 1:
        raise DataError(
            f"{data} has several data sets with a split {split}: give one as --data, such as {places[0]}, or "
            f"{places[1]}"
        )
    if not places:
        return _unsplit(data) if split == "train" and unsplit else None
    if files := _files(places[0], split):
        return _filled(_read_files(files, columns), places[0], split)
    folder = next(folder for name in SPLITS[split] if (folder := places[0] / name).is_dir())
    if files := sorted(file for file in folder.iterdir() if file.suffix in TABLES[:2]):
        return _filled(_read_files(files, columns), folder, split)
    if class_folders(folder) or split == "train" or not any(folder.iterdir()):
        return _filled(read_class_folders(folder), places[0], split)
    return _filled(read_devkit(folder, data, _train_names(data, columns)), places[0], split)


def _unsplit(data: Path) -> LabelledImages | None:
    """All images of a folder that has class folders and no splits; None if it has fewer than two class folders."""
    if any(_is_there(data, split) for split in SPLITS):
        return None
    with_images = [folder for folder in class_folders(data) if next(image_files(folder, Counter()), None)]
    return read_class_folders(data) if len(with_images) > 1 else None


def _train_names(data: Path, columns: Columns) -> tuple[str, ...]:
    train = find_split(data, "train", columns)
    return () if train is None else train.label_names


def _sub_folders(data: Path) -> list[Path]:
    splits = {name for names in SPLITS.values() for name in names}
    entries = sorted(entry for entry in data.iterdir() if entry.is_dir())
    return [entry for entry in entries if entry.name not in splits | LEFTOVERS and not entry.name.startswith(".")]


def _is_there(place: Path, split: str) -> bool:
    return bool(_files(place, split)) or any((place / name).is_dir() for name in SPLITS[split])


def _files(place: Path, split: str) -> list[Path]:
    """The files of a split in a folder: of the first kind that there is. A list named by the split alone goes first.

    Raises:
        DataError: a file is named after two splits, or there are several lists.
    """
    for suffix in TABLES:
        found = sorted(file for file in place.glob(f"*{suffix}") if file.name[0] != "." and split in _named(file))
        if suffix == ".csv":
            found = [file for file in found if file.stem in SPLITS[split]] or found
            if len(found) > 1:
                raise DataError(
                    f"{place} has several lists of a split {split}, such as {found[0].name} and {found[1].name}: call "
                    f"the right one {split}.csv, and give the others no split's name"
                )
        for file in found:
            if len(splits := _named(file)) > 1:
                raise DataError(f"{file} is named after the splits {' and '.join(splits)}: rename it after one of them")
        if found:
            return found
    return []


def _named(file: Path) -> list[str]:
    """The splits whose words are in the file's name."""
    return [
        split for split, words in SPLITS.items() if re.search(rf"(^|[-._ ])({'|'.join(words)})([-._ \d]|$)", file.stem)
    ]


def _read_files(files: Sequence[Path], columns: Columns) -> LabelledImages:
    if files[0].suffix == ".csv":
        return read_csv(files[0], columns)
    return ParquetImages(files, columns) if files[0].suffix == ".parquet" else TarImages(files, columns)


def _filled(images: LabelledImages, place: Path, split: str) -> LabelledImages:
    if not len(images):
        raise DataError(f"{place} has a split {split}, but no images in it")
    return images


def _contents(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return f"{', '.join(names[:6])}{', …' if len(names) > 6 else ''}" if names else "nothing"


def decode(images: LabelledImages, index: int) -> Image.Image:
    """One image, upright and in RGB. Raises DataError that names it."""
    with _naming(images.source(index)):
        return read_picture(images.encoded(index), LIMITS).image


def prepare(images: LabelledImages, index: int, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """One image as a model's input, uint8 (H, W, 3), preprocessed as by the server. Raises DataError that names it."""
    with _naming(images.source(index)):
        return model_input(images.encoded(index), preprocessing, LIMITS)


def prepare_file(file: Path, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """The image in a file, in the same way. Raises DataError that names it."""
    with _naming(file):
        return model_input(file.read_bytes(), preprocessing, LIMITS)


@contextlib.contextmanager
def _naming(source: object) -> Iterator[None]:
    """Turn an image's PictureError into a DataError that names the image."""
    try:
        yield
    except (OSError, PictureError) as error:
        raise DataError(f"{source} cannot be decoded: {error}") from error
