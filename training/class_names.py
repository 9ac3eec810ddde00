"""The classes of a data set whose images have an index or a name."""

import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deit.errors import DataError
from deit.labels import LABELS_FILE, read_labels

logger = logging.getLogger(__name__)

Indices = npt.NDArray[np.int32]


class UnlabelledError(DataError):
    """A split has images without classes, like the test sets of competitions."""


NUMBERS_PER_CLASS = 10
"""If the highest number is above this many times the number of classes, numbers are identifiers, not a count."""


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
        DataError: some images have no class, or one without a name, or numbers without names do not count from 0.
    """
    missing = [label is None or label in ("", "-1", -1) for label in labels]
    if labels and all(missing):
        raise UnlabelledError(f"{source} has no labels (-1 or nothing), so it cannot be evaluated")
    if any(missing):
        raise DataError(f"{source} gives image {missing.index(True)} no class (counted from 0): remove it or name it")
    if any(isinstance(label, str) and not label.strip().isdecimal() for label in labels):
        return text_indices([composed(str(label)) for label in labels], names, source)
    numbers = [int(label) for label in labels]  # type: ignore[call-overload]
    least, most = min(numbers, default=0), max(numbers, default=-1)
    if names is None:
        # Counted from 1, or not counted at all; a sample of a data set may well lack some classes.
        if least > 0 or most >= NUMBERS_PER_CLASS * max(1, len(set(numbers))):
            raise DataError(
                f"{source} has {len(set(numbers))} classes, numbered from {least} to {most}: name all classes in "
                f"{LABELS_FILE} next to it, one a line in the order of their numbers from 0, or give each image its "
                "class by name"
            )
        logger.info(
            "%s does not name its classes, so their numbers are their names; to name them, add %s, one name per line",
            source,
            LABELS_FILE,
        )
        names = tuple(map(str, range(most + 1)))
    if numbers and not 0 <= least <= most < len(names):
        raise DataError(
            f"{source} has labels from {least} to {most}, but names {len(names)} classes: correct the names "
            f"({LABELS_FILE} has one a line) or the labels"
        )
    return np.array(numbers, dtype=np.int32), names


def text_indices(
    texts: Sequence[str], names: tuple[str, ...] | None, source: object
) -> tuple[Indices, tuple[str, ...]]:
    """As `class_indices`, for composed text that is never read as numbers.

    Raises:
        DataError: a class is not named, or two have its name.
    """
    known = in_order(set(texts)) if names is None else tuple(map(composed, names))
    index_of = {name: index for index, name in enumerate(known)}
    count_of = Counter(known)
    for text in texts:
        if (count := count_of[text]) != 1:
            named = f"{count} of its classes are called" if count else f"is not among its {len(known)} names"
            raise DataError(f"{source} has the class {text!r}, which {named}")
    return np.array([index_of[text] for text in texts], dtype=np.int32), known


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """The names of classes that have no numbers: sorted, those that are numbers all as numbers."""
    ordered = sorted(names)
    return tuple(sorted(ordered, key=int) if all(name.isdecimal() for name in ordered) else ordered)
