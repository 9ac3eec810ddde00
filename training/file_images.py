"""Images in separate files: in class folders, in a CSV list, or in one folder with the labels of ImageNet's devkit."""

import csv
import logging
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from deit.errors import DataError
from deit.pictures import IMAGE_SUFFIXES
from training.class_names import Indices, UnlabelledError, class_indices, composed, in_order, named_in
from training.columns import Columns

logger = logging.getLogger(__name__)

LEFTOVERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "lost+found"})
"""Folders that archives, disks and programs leave behind; like hidden folders, they are not classes."""

IMAGE_HEADERS = ("path", "image", "file", "filename", "file_name", "image_path", "image_id", "id")
LABEL_HEADERS = ("label", "class", "category", "target", "species", "breed")

DEVKIT_LABELS = "ILSVRC2012_validation_ground_truth.txt"
VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})")


class FileImages:
    """Image files with class indices. The paths are in one Arrow array, because every worker that touches a list of a
    million would copy it.
    """

    def __init__(self, root: Path, paths: Sequence[str], labels: Indices, label_names: tuple[str, ...]) -> None:
        self.label_names = label_names
        self._root, self._paths, self._labels = root, pa.array(paths, pa.large_string()), labels

    def __len__(self) -> int:
        return len(self._labels)

    def encoded(self, index: int) -> bytes:
        return self._path(index).read_bytes()

    def label(self, index: int) -> int:
        return int(self._labels[index])

    def file_name(self, index: int) -> str:
        return self._path(index).name

    def source(self, index: int) -> str:
        return str(self._path(index))

    def _path(self, index: int) -> Path:
        path: str = self._paths[index].as_py()
        return self._root / path


def class_folders(folder: Path) -> list[Path]:
    """The folders in a folder that can be classes."""
    return [entry for entry in folder.iterdir() if entry.is_dir() and not _is_leftover(entry.name)]


def read_class_folders(folder: Path) -> FileImages:
    """Images below one folder for each class; classes are indexed in the order of the folders' names.

    Numbers are sorted as numbers: ImageNet V2 names its folders 0, 1, 2, …, 10. Links are followed; hidden files and
    files without the suffix of an image are counted and left out.

    Raises:
        DataError: the names of two folders differ only in Unicode form.
    """
    folders: dict[str, Path] = {}
    for entry in class_folders(folder):
        if (name := composed(entry.name)) in folders:
            raise DataError(f"{folder} has two folders {name!r} that differ in Unicode form alone: merge them")
        folders[name] = entry
    names = in_order(folders)
    paths: list[str] = []
    labels: list[int] = []
    skipped: Counter[str] = Counter()
    for label, name in enumerate(names):
        before = len(paths)
        paths += sorted(str(file.relative_to(folder)) for file in image_files(folders[name], skipped))
        labels += [label] * (len(paths) - before)
        if len(paths) == before:
            logger.warning("%s contains no image files, so its class has no images", folders[name])
    skipped.update("files next to the class folders" for entry in folder.iterdir() if not entry.is_dir())
    report_skipped(folder, skipped)
    return FileImages(folder, paths, np.array(labels, dtype=np.int32), names)


def image_files(folder: Path, skipped: Counter[str]) -> Iterator[Path]:
    """The image files below a folder, by suffix in upper or lower case; all other files are counted by kind."""
    visited: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in visited:  # a link to a folder above
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not _is_leftover(name)]
        for name in sorted(files):
            file = Path(place, name)
            if name.startswith("."):
                skipped["hidden"] += 1
            elif file.suffix.lower() not in IMAGE_SUFFIXES:
                skipped[file.suffix.lower() or "without a suffix"] += 1
            elif not file.is_file():
                skipped["broken links"] += 1
            else:
                yield file


def report_skipped(source: object, skipped: Counter[str]) -> None:
    """Log how many files of each kind were left out, if any."""
    if skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in skipped.most_common(8))
        logger.info("%s: %d files are not read as images: %s", source, skipped.total(), kinds)


def read_csv(file: Path, columns: Columns) -> FileImages:
    """Images from a table of paths, relative to the table, and classes, as indices or names.

    Raises:
        DataError: its header lacks such columns, or an image is missing.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            sample = text.read(4096)
            text.seek(0)
            separator = max(",;\t", key=sample.partition("\n")[0].count)
            rows = list(csv.DictReader(text, delimiter=separator))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{file} cannot be read as CSV: {error}") from error
    if not rows:
        raise DataError(f"{file} has no rows below its header")
    image = _header(file, rows[0], columns.image, IMAGE_HEADERS, "--image-column")
    label = _header(file, rows[0], columns.label, LABEL_HEADERS, "--label-column")
    paths = [_with_suffix(file.parent, row[image] or "") for row in rows]
    for line, path in enumerate(paths, start=2):
        if not (file.parent / path).is_file():
            raise DataError(f"{file} line {line} names {path!r}, which is not in {file.parent}: correct the path")
    indices, names = class_indices([row[label] for row in rows], named_in(file.parent), f"column {label} of {file}")
    return FileImages(file.parent, paths, indices, names)


def _with_suffix(folder: Path, path: str) -> str:
    """The path as it is, or with the suffix that tables of image numbers leave out."""
    if Path(path).suffix.lower() in IMAGE_SUFFIXES:
        return path
    complete = (f"{path}{suffix}" for suffix in (".jpg", ".jpeg", ".png"))
    return next((name for name in complete if (folder / name).is_file()), path)


def _header(file: Path, row: dict[str, str], wanted: str | None, usual: tuple[str, ...], option: str) -> str:
    headers = [name for name in row if isinstance(name, str)]
    if wanted is not None:
        found = [wanted] if wanted in headers else []
    else:
        found = [name for name in headers if name.strip().lower() in usual]
    if len(found) != 1:
        raise DataError(f"{file} has the columns {', '.join(headers)}: name the right one with {option}")
    return found[0]


def read_devkit(folder: Path, data: Path, names: tuple[str, ...]) -> FileImages:
    """ImageNet's validation images in one folder, with the labels of its development kit, found below the data set.

    Args:
        names: WordNet ids of the classes, which are the names of the training folders.

    Raises:
        UnlabelledError: there is no development kit.
        DataError: the kit does not match the images or the classes.
    """
    files = sorted(file for file in image_files(folder, Counter()))
    found = next(iter(sorted(data.glob(f"**/{DEVKIT_LABELS}"))), None) if _is_numbered(files) else None
    if found is None:
        raise UnlabelledError(
            f"{folder} has no folder for each class. Sort the images into folders, list them in {folder.name}.csv with "
            f"their classes, or for ImageNet's validation images put the devkit's {DEVKIT_LABELS} and meta.mat into "
            f"{data}"
        )
    wordnet_ids = _wordnet_ids(found.parent / "meta.mat", names)
    truth = [int(line) for line in found.read_text().split()]
    index_of = {name: index for index, name in enumerate(names)}
    labels = []
    for file in files:
        match = VALIDATION_NAME.search(file.name)
        if match is None or not 1 <= int(match[1]) <= len(truth):
            raise DataError(f"{file} is not among the {len(truth)} validation images that {found} labels")
        labels.append(index_of[wordnet_ids[truth[int(match[1]) - 1] - 1]])
    paths = [str(file.relative_to(folder)) for file in files]
    return FileImages(folder, paths, np.array(labels, dtype=np.int32), names)


def _is_numbered(files: list[Path]) -> bool:
    return bool(files) and VALIDATION_NAME.search(files[0].name) is not None


def _wordnet_ids(file: Path, names: tuple[str, ...]) -> list[str]:
    """The WordNet ids of the kit's classes in its own order: the first text of each entry of a MATLAB 5 file.

    Entries are sorted by ILSVRC2012_ID, with the 1000 classes before their parent classes. Every id must be a class of
    the training images, so a file in another order cannot pass unnoticed.
    """
    try:
        content = file.read_bytes()[128:]
    except OSError as error:
        raise DataError(f"{file} must name the classes that {DEVKIT_LABELS} counts: {error}") from error
    unpacked = b""
    while len(content) >= 8:  # elements: type, bytes; type 15 is compressed
        kind, size = (int.from_bytes(content[at : at + 4], "little") for at in (0, 4))
        element, content = content[8 : 8 + size], content[8 + size :]
        try:
            unpacked += zlib.decompress(element) if kind == 15 else element
        except zlib.error as error:
            raise DataError(f"{file} is damaged: {error}") from error
    # a character takes one byte or two
    found = [match.decode() for match in re.findall(rb"n\d{8}", unpacked.replace(b"\0", b""))]
    ids = list(dict.fromkeys(found))[: len(names)]
    if set(ids) != set(names):
        raise DataError(
            f"{file} begins with other classes than the {len(names)} of the training folders: take the meta.mat of "
            "ILSVRC2012, and folders named by WordNet id"
        )
    return ids


def _is_leftover(name: str) -> bool:
    return name.startswith(".") or name in LEFTOVERS
