"""Images in uncompressed tar shards, in class folders or as WebDataset pairs them with their labels."""

import json
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from deit.errors import DataError
from deit.pictures import IMAGE_SUFFIXES
from training.class_names import class_indices, composed, named_in, text_indices
from training.columns import Columns
from training.file_images import report_skipped

JSON_LABELS = ("label", "cls", "class", "class_id", "class_name")
LABEL_BYTES = 2**20
"""A larger .cls or .json is not a label."""

Key = tuple[int, str]
"""Number of the shard, and the part of the name that the members of a sample share."""


class _Member(NamedTuple):
    key: Key
    name: str
    offset: int
    size: int


class TarImages:
    """Images in tar shards, read in place. The shards' headers are read once, at the start.

    A sample's key ends at the first dot of the base name, which is WebDataset's rule. Its class is in `key.cls` or
    `key.json`, as an index or a name; labels.txt or classnames.txt next to the shards names the indices. Without such
    members, classes are the folders that images lie in.
    """

    def __init__(self, shards: Sequence[Path], columns: Columns = Columns()) -> None:  # noqa: B008  frozen
        images: list[_Member] = []
        labels_of: dict[Key, object] = {}
        skipped: Counter[str] = Counter()
        for number, shard in enumerate(shards):
            try:
                with tarfile.open(shard, "r:") as archive:
                    for member in archive:
                        if member.isfile():
                            _read_member(archive, member, number, columns, images, labels_of, skipped)
            except (OSError, ValueError, tarfile.TarError) as error:
                raise DataError(f"{shard} is not an uncompressed tar file of images: {error}") from error
        report_skipped(shards[0].parent, skipped)
        if labels_of:
            _refuse_pairless(shards, images, labels_of)
            labels = [labels_of[image.key] for image in images]
            found = class_indices(labels, named_in(shards[0].parent), shards[0].parent)
        else:
            folders = [composed(Path(image.name).parent.name) for image in images]
            if "" in folders:
                raise DataError(
                    f"{images[folders.index('')].name} in {shards[images[folders.index('')].key[0]]} is in no class "
                    "folder and has no .cls or .json next to it: pack class folders, or WebDataset's pairs"
                )
            found = text_indices(folders, None, shards[0].parent)
        self._labels, self.label_names = found
        self._shards = tuple(shards)
        self._names = pa.array([image.name for image in images], pa.large_string())
        places = [(image.key[0], image.offset, image.size) for image in images]
        self._places = np.array(places, dtype=np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self._labels)

    def encoded(self, index: int) -> bytes:
        shard, offset, size = map(int, self._places[index])
        with self._shards[shard].open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def label(self, index: int) -> int:
        return int(self._labels[index])

    def file_name(self, index: int) -> str:
        return Path(self._names[index].as_py()).name

    def source(self, index: int) -> str:
        return f"{self._names[index]} in {self._shards[self._places[index, 0]]}"


def _read_member(
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    shard: int,
    columns: Columns,
    images: list[_Member],
    labels_of: dict[Key, object],
    skipped: Counter[str],
) -> None:
    path = Path(member.name)
    stem, _, extension = path.name.partition(".")
    key, extension = (shard, str(path.parent / stem)), extension.lower()
    if path.name.startswith(".") or "__MACOSX" in path.parts:
        skipped["hidden"] += 1
    elif extension in ("cls", "json") and member.size <= LABEL_BYTES:
        extracted = archive.extractfile(member)
        assert extracted is not None  # it is a file
        text = extracted.read().decode().strip()
        if extension == "cls" and columns.label is None:
            labels_of[key] = text
        elif extension == "json" and (label := _json_label(text, columns.label)) is not None:
            labels_of.setdefault(key, label)  # a .cls takes precedence
    elif path.suffix.lower() in IMAGE_SUFFIXES and columns.image in (None, extension):
        images.append(_Member(key, member.name, member.offset_data, member.size))
    else:
        skipped[path.suffix.lower() or "without a suffix"] += 1


def _json_label(text: str, wanted: str | None) -> object:
    content = json.loads(text)
    if not isinstance(content, dict):
        return None
    keys = JSON_LABELS if wanted is None else (wanted,)
    return next((content[key] for key in keys if isinstance(content.get(key), int | str)), None)


def _refuse_pairless(shards: Sequence[Path], images: list[_Member], labels_of: dict[Key, object]) -> None:
    """Raises DataError for an image without a class, and for two images of one sample."""
    seen: set[Key] = set()
    for image in images:
        place = f"{image.name} in {shards[image.key[0]]}"
        if image.key not in labels_of:
            raise DataError(f"{place} has no {Path(image.key[1]).name}.cls or .json with its class next to it: add it")
        if image.key in seen:
            raise DataError(f"{place} is a second image of one sample: choose its extension with --image-column")
        seen.add(image.key)
