from pathlib import Path

import pytest

from deit.labels import read_labels, write_labels


def test_labels_come_back_in_order(tmp_path: Path) -> None:
    labels = ("tench", "great white shark: a fish", "café")
    write_labels(tmp_path / "labels.txt", labels)
    assert read_labels(tmp_path / "labels.txt") == labels


@pytest.mark.parametrize("label", ["", "  ", "two\nlines", "carriage\rreturn"])
def test_a_label_that_breaks_the_format_is_refused_and_nothing_written(tmp_path: Path, label: str) -> None:
    with pytest.raises(ValueError, match="label 1 is"):
        write_labels(tmp_path / "labels.txt", ("cat", label))
    assert list(tmp_path.iterdir()) == []


def test_an_empty_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\n\ndog\n")
    with pytest.raises(ValueError, match="line 2 is empty"):
        read_labels(tmp_path / "labels.txt")
