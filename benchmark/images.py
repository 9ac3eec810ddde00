"""Image files to measure with, as they are on disk."""

from dataclasses import dataclass
from pathlib import Path

from deit.errors import DataError
from deit.pictures import IMAGE_SUFFIXES
from training.images import LabelledImages, open_images


@dataclass(frozen=True)
class Photographs:
    """Image files, with their classes if the source has them."""

    images: tuple[bytes, ...]
    labels: tuple[int, ...] | None
    names: tuple[str, ...]


def read_photographs(path: Path, count: int | None = None) -> Photographs:
    """The first `count` images.

    Args:
        path: a data set (its test split is used), a parquet or tar file, a folder of image files, or an image file.

    Raises:
        DataError: there are none, or it is of an unknown layout.
    """
    if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
        return Photographs((path.read_bytes(),), None, (path.name,))
    if path.is_dir() and (files := sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)):
        files = files[:count]
        return Photographs(tuple(file.read_bytes() for file in files), None, tuple(file.name for file in files))
    images = labelled_images(path)
    indices = range(len(images) if count is None else min(count, len(images)))
    return Photographs(
        tuple(images.encoded(index) for index in indices),
        tuple(images.label(index) for index in indices),
        tuple(images.file_name(index) for index in indices),
    )


def labelled_images(path: Path) -> LabelledImages:
    """Raises DataError when the images have no classes."""
    try:
        return open_images(path, "test")
    except DataError as error:
        raise DataError(f"{error}; a folder of image files is enough for measurements without classes") from error
