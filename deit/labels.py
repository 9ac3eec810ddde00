"""Class names: `labels.txt`, one name a line, line number = class index. Triton reads the same file."""

from collections.abc import Sequence
from pathlib import Path

from deit.durable import write_file

LABELS_FILE = "labels.txt"


def write_labels(path: Path, labels: Sequence[str]) -> None:
    """Raises ValueError for a name that would break the one-name-a-line format (Triton reads it with getline)."""
    for index, label in enumerate(labels):
        if not label.strip() or "\n" in label or "\r" in label:
            raise ValueError(f"label {index} is {label!r}: a label is one line of text and not empty")
    write_file(path, "".join(f"{label}\n" for label in labels))


def read_labels(path: Path) -> tuple[str, ...]:
    """Raises ValueError that names the line of an empty name."""
    labels = tuple(path.read_text().splitlines())
    for index, label in enumerate(labels):
        if not label.strip():
            raise ValueError(f"{path} line {index + 1} is empty: every class needs a name")
    return labels
