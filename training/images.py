"""Data sets: labelled images from parquet files or class folders, decoded but not transformed.

Layouts, both with the splits `train` and `test` (or `val`):
- parquet in Hugging Face's layout: `<split>*.parquet` with a column `image` {bytes, path} and an integer column `label`
  whose class names stand in the schema's metadata;
- image folders in ImageNet's layout: `<split>/<class name>/*`.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from deit.errors import DataError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff"}


class LabelledImages(Protocol):
    """Encoded images with class indices."""

    label_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def encoded(self, index: int) -> bytes:
        """The image file's bytes."""
        ...

    def label(self, index: int) -> int: ...

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

    def source(self, index: int) -> str:
        return f"row {index} of {self._files[0].parent}/{self._files[0].name}"


class FolderImages:
    """Images below one folder for each class; classes are indexed in the order of their folders' names."""

    def __init__(self, folder: Path) -> None:
        self.label_names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
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

    def source(self, index: int) -> str:
        return str(self._files[index][0])


def open_images(data: Path, split: str) -> LabelledImages:
    """The images of one split, "train" or "test".

    Raises:
        DataError: the folder or the split is missing, of an unknown layout, or empty.
    """
    if not data.is_dir():
        raise DataError(f"{data} is not a folder. --data takes a folder with the splits train and test.")
    names = ("train",) if split == "train" else ("test", "val", "validation")
    for name in names:
        images: LabelledImages
        if files := sorted(data.glob(f"{name}*.parquet")):
            images = ParquetImages(files)
        elif (data / name).is_dir():
            images = FolderImages(data / name)
        else:
            continue
        if not len(images):
            raise DataError(f"{data} has a split {name}, but no image in it")
        return images
    raise DataError(
        f"{data} has no split {' or '.join(names)}: neither {names[0]}*.parquet nor a folder {names[0]} with a folder "
        "for each class"
    )


def decode(images: LabelledImages, index: int) -> Image.Image:
    """One image in RGB. Raises DataError that names it."""
    try:
        return Image.open(io.BytesIO(images.encoded(index))).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{images.source(index)} cannot be decoded: {error}") from error
