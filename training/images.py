"""Data sets: labelled images from parquet files or class folders, decoded but not transformed.

Layouts, all with the splits `train` and `test` (or `val`):
- parquet in Hugging Face's layout: `<split>*.parquet` with a column `image` {bytes, path} and an integer column `label`
  whose class names stand in the schema's metadata;
- image folders in ImageNet's layout: `<split>/<class name>/*`;
- tar shards: `<split>*.tar` with `<class name>/*`, or WebDataset's pairs of image and .cls file.
"""

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from deit.errors import DataError, PictureError
from deit.labels import LABELS_FILE, read_labels
from deit.model_input import model_input
from deit.pictures import ALL_FORMATS, IMAGE_SUFFIXES, PictureLimits, read_picture
from deit.preprocessing import Preprocessing

LIMITS = PictureLimits(max_pixels=178_956_970, formats=ALL_FORMATS, bounds_cost=False)
"""The files are one's own, so they may be of any kind and cost; Pillow itself opens no more pixels."""


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
        """Where the image lies, for error messages."""
        ...


class ParquetImages:
    """Images of parquet files in Hugging Face's layout, held in memory as they are encoded."""

    def __init__(self, files: Sequence[Path]) -> None:
        try:
            tables = [pq.read_table(file, columns=["image", "label"]) for file in files]
            table = pa.concat_tables(tables).combine_chunks()
            features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
            self.label_names = tuple(map(str, features["label"]["names"]))
            self._bytes = pa.compute.struct_field(table["image"], "bytes")
            self._paths = pa.compute.struct_field(table["image"], "path")
            self._labels = table["label"].to_numpy()
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{files[0]} is not parquet in Hugging Face's image layout ({error!r}). It needs a column `image` "
                "{bytes, path} and a column `label` with class names in the schema's metadata."
            ) from error
        self._files = files
        if len(self._labels) and not 0 <= self._labels.min() <= self._labels.max() < len(self.label_names):
            raise DataError(
                f"{files[0]} has labels from {self._labels.min()} to {self._labels.max()}, "
                f"but names {len(self.label_names)} classes"
            )

    def __len__(self) -> int:
        return len(self._labels)

    def encoded(self, index: int) -> bytes:
        content: bytes = self._bytes[index].as_py()
        return content

    def label(self, index: int) -> int:
        return int(self._labels[index])

    def file_name(self, index: int) -> str:
        return Path(self._paths[index].as_py() or "").name

    def source(self, index: int) -> str:
        return f"row {index} of {self._files[0].parent}/{self._files[0].name}"


class FolderImages:
    """Images below one folder for each class; classes are indexed in the order of their folders' names.

    Numbers are ordered as numbers: ImageNet V2 names its folders 0, 1, 2, …, 10.
    """

    def __init__(self, folder: Path) -> None:
        names = [entry.name for entry in folder.iterdir() if entry.is_dir()]
        self.label_names = tuple(sorted(names, key=int if all(name.isdecimal() for name in names) else None))
        self._files = [
            (file, label)
            for label, name in enumerate(self.label_names)
            for file in sorted((folder / name).rglob("*"))
            if file.suffix.lower() in IMAGE_SUFFIXES
        ]

    def __len__(self) -> int:
        return len(self._files)

    def encoded(self, index: int) -> bytes:
        return self._files[index][0].read_bytes()

    def label(self, index: int) -> int:
        return self._files[index][1]

    def file_name(self, index: int) -> str:
        return self._files[index][0].name

    def source(self, index: int) -> str:
        return str(self._files[index][0])


class TarImages:
    """Images in uncompressed tar shards, read where they lie. The shards' headers are read once, at the start.

    Either in folders named after the classes, or WebDataset's pairs of `key.jpg` and `key.cls` with the class index;
    the classes of the latter are named by labels.txt, one a line.
    """

    def __init__(self, shards: Sequence[Path], labels_file: Path) -> None:
        images: list[tuple[Path, str, int, int]] = []  # shard, member, offset, size
        indices: dict[tuple[Path, str], int] = {}  # by shard and key
        for shard in shards:
            try:
                with tarfile.open(shard, "r:") as archive:
                    for member in archive:
                        key, _, suffix = member.name.partition(".")
                        if member.isfile() and suffix == "cls":
                            content = archive.extractfile(member)
                            assert content is not None  # it is a file
                            indices[shard, key] = int(content.read(20))
                        elif member.isfile() and Path(member.name).suffix.lower() in IMAGE_SUFFIXES:
                            images.append((shard, member.name, member.offset_data, member.size))
            except (OSError, ValueError, tarfile.TarError) as error:
                raise DataError(f"{shard} is not an uncompressed tar file of images: {error}") from error
        if indices:
            try:
                self.label_names = read_labels(labels_file)
                labels = [indices[shard, member.partition(".")[0]] for shard, member, _, _ in images]
            except (OSError, ValueError) as error:
                raise DataError(f"{labels_file} must name the classes that the .cls files count: {error}") from error
            except KeyError as error:
                raise DataError(f"{error.args[0][0]} has no {error.args[0][1]}.cls next to the image") from error
            if labels and not 0 <= min(labels) <= max(labels) < len(self.label_names):
                raise DataError(
                    f"{shards[0].parent} has labels from {min(labels)} to {max(labels)}, but {labels_file} names "
                    f"{len(self.label_names)} classes"
                )
        else:
            self.label_names = tuple(sorted({Path(member).parent.name for _, member, _, _ in images}))
            index_of = {name: index for index, name in enumerate(self.label_names)}
            labels = [index_of[Path(member).parent.name] for _, member, _, _ in images]
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return len(self._images)

    def encoded(self, index: int) -> bytes:
        shard, _, offset, size = self._images[index]
        with shard.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def label(self, index: int) -> int:
        return self._labels[index]

    def file_name(self, index: int) -> str:
        return Path(self._images[index][1]).name

    def source(self, index: int) -> str:
        shard, member, _, _ = self._images[index]
        return f"{member} in {shard}"


def open_images(data: Path, split: str) -> LabelledImages:
    """The images of one split, "train" or "test".

    To test on, `data` may also be a parquet or tar file, or a folder whose folders are numbered by class, as ImageNet
    V2's are.

    Raises:
        DataError: the folder or the split is missing, of an unknown layout, or empty.
    """
    names = ("train",) if split == "train" else ("test", "val", "validation")
    found: LabelledImages | None = None
    if data.is_file() and split == "test" and data.suffix in (".parquet", ".tar"):
        found = ParquetImages([data]) if data.suffix == ".parquet" else TarImages([data], data.with_name(LABELS_FILE))
    elif not data.is_dir():
        raise DataError(f"{data} is not a folder. --data takes a folder with the splits train and test.")
    for name in names:
        if found is not None:
            break
        if files := sorted(data.glob(f"{name}*.parquet")):
            found = ParquetImages(files)
        elif files := sorted(data.glob(f"{name}*.tar")):
            found = TarImages(files, data / LABELS_FILE)
        elif (data / name).is_dir():
            found = FolderImages(data / name)
    if found is None and split == "test" and (data / "0").is_dir():
        found = FolderImages(data)
    if found is None:
        raise DataError(
            f"{data} has no split {' or '.join(names)}: neither {names[0]}*.parquet, nor {names[0]}*.tar, nor a folder "
            f"{names[0]} with a folder for each class"
        )
    if not len(found):
        raise DataError(f"{data} has a split {split}, but no image in it")
    return found


class SomeImages:
    """As many of the images as asked for, spread evenly, so that a data set sorted by class keeps all its classes."""

    def __init__(self, images: LabelledImages, count: int) -> None:
        if count > len(images):
            raise DataError(f"--train-images {count}: the data set has {len(images)}")
        self.label_names = images.label_names
        self._images, self._count = images, count

    def __len__(self) -> int:
        return self._count

    def _index(self, index: int) -> int:
        return index * len(self._images) // self._count

    def encoded(self, index: int) -> bytes:
        return self._images.encoded(self._index(index))

    def label(self, index: int) -> int:
        return self._images.label(self._index(index))

    def file_name(self, index: int) -> str:
        return self._images.file_name(self._index(index))

    def source(self, index: int) -> str:
        return self._images.source(self._index(index))


def decode(images: LabelledImages, index: int) -> Image.Image:
    """One image, upright and in RGB. Raises DataError that names it."""
    try:
        return read_picture(images.encoded(index), LIMITS).image
    except (OSError, PictureError) as error:
        raise DataError(f"{images.source(index)} cannot be decoded: {error}") from error


def prepare(images: LabelledImages, index: int, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """One image as a model reads it, uint8 (H, W, 3), as the server prepares it. Raises DataError that names it."""
    try:
        return model_input(images.encoded(index), preprocessing, LIMITS)
    except (OSError, PictureError) as error:
        raise DataError(f"{images.source(index)} cannot be decoded: {error}") from error


def prepare_file(file: Path, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    """The image in a file, in the same way. Raises DataError that names it."""
    try:
        return model_input(file.read_bytes(), preprocessing, LIMITS)
    except (OSError, PictureError) as error:
        raise DataError(f"{file} cannot be decoded: {error}") from error
