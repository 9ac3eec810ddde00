from pathlib import Path

import pytest

from deit.durable import new_folder, replaced_folder, replacement, write_file


class Interrupted(Exception):
    pass


def test_write_file_replaces_the_content(tmp_path: Path) -> None:
    file = tmp_path / "deeper" / "labels.txt"
    write_file(file, "cat\n")
    write_file(file, "dog\n")
    assert file.read_text() == "dog\n"
    assert [entry.name for entry in file.parent.iterdir()] == ["labels.txt"]


def test_a_failed_replacement_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_text("old")
    with pytest.raises(Interrupted), replacement(file) as temporary:
        temporary.write_text("half of the n")
        raise Interrupted
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_failed_new_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Interrupted), new_folder(tmp_path / "1") as folder:
        (folder / "model.onnx").write_text("half")
        raise Interrupted
    assert list(tmp_path.iterdir()) == []


def test_a_new_folder_is_readable_by_other_users(tmp_path: Path) -> None:
    with new_folder(tmp_path / "1") as folder:
        (folder / "weights").write_text("new")
        (folder / "weights").chmod(0o600)
    assert ((tmp_path / "1").stat().st_mode & 0o777, (tmp_path / "1" / "weights").stat().st_mode & 0o777) == (
        0o755,
        0o644,
    )


def test_a_new_folder_never_replaces_one(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    with pytest.raises(FileExistsError), new_folder(tmp_path / "1") as folder:
        (folder / "model.onnx").write_text("new")
    assert list((tmp_path / "1").iterdir()) == []


def test_a_replaced_folder_changes_at_once_and_leaves_no_copy(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    for content in ("first", "second", "third"):
        with replaced_folder(checkpoint) as folder:
            (folder / "weights").write_text(content)
    assert (checkpoint / "weights").read_text() == "third"
    assert len(list(tmp_path.iterdir())) == 2  # the link and the folder it points to


def test_a_failed_replaced_folder_keeps_the_old_one(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    with replaced_folder(checkpoint) as folder:
        (folder / "weights").write_text("old")
    with pytest.raises(Interrupted), replaced_folder(checkpoint) as folder:
        (folder / "weights").write_text("half")
        raise Interrupted
    assert (checkpoint / "weights").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
