"""The classes of a data set that gives each image an index or a name."""

import logging
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deit.errors import DataError
from deit.labels import LABELS_FILE, read_labels

logger = logging.getLogger(__name__)

Indices = npt.NDArray[np.int32]


class UnlabelledError(DataError):
    """A split has images without classes, like the test sets of competitions."""


def composed(name: str) -> str:
    """The composed form of a name: Unicode spells some names in two ways, and a Mac's disk holds the other."""
    return unicodedata.normalize("NFC", name.strip())


def named_in(folder: Path) -> tuple[str, ...] | None:
    """The classes that labels.txt or WebDataset's classnames.txt in the folder names in order, if there is one."""
    for file in (folder / LABELS_FILE, folder / "classnames.txt"):
        if file.is_file():
            try:
                return read_labels(file)
            except (OSError, ValueError) as error:
                raise DataError(f"{file} cannot be read as class names, one a line: {error}") from error
    return None


def class_indices(
    labels: Sequence[object], names: tuple[str, ...] | None, source: object
) -> tuple[Indices, tuple[str, ...]]:
    """The class index of each image, and the classes' names.

    Args:
        labels: all whole numbers, or all text. Text that consists of numbers is read as numbers.
        names: of the classes in index order. Without them, text is indexed in sorted order, and numbers are the names.
        source: where the labels come from, for messages.

    Raises:
        UnlabelledError: no image has a class: each label is -1 or missing.
        DataError: some images have no class, or one without a name.
    """
    missing = [label is None or label in ("", "-1", -1) for label in labels]
    if labels and all(missing):
        raise UnlabelledError(f"{source} gives no image a class (-1 or nothing): it cannot be evaluated")
    if any(missing):
        raise DataError(f"{source} gives image {missing.index(True)} no class (counted from 0): remove it or name it")
    try:
        numbers = np.array([int(label) for label in labels], dtype=np.int64)  # type: ignore[call-overload]
    except ValueError:
        texts = [composed(str(label)) for label in labels]
        known = tuple(sorted(set(texts))) if names is None else tuple(map(composed, names))
        index_of = {name: index for index, name in enumerate(known)}
        if unknown := next((text for text in texts if text not in index_of), None):
            raise DataError(f"{source} has the class {unknown!r}, which is not among its {len(known)} names") from None
        return np.array([index_of[text] for text in texts], dtype=np.int32), known
    if names is None:
        logger.info(
            "%s names no classes, so their numbers are their names: %s names them, one a line", source, LABELS_FILE
        )
        names = tuple(map(str, range(int(numbers.max(initial=-1)) + 1)))
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(names):
        raise DataError(
            f"{source} has labels from {numbers.min()} to {numbers.max()}, but names {len(names)} classes: correct the "
            f"names ({LABELS_FILE} has one a line) or the labels"
        )
    return numbers.astype(np.int32), names
