import json
from pathlib import Path

import pytest

from deit.errors import DataError
from training.curves import draw_curves


def log_of(folder: Path, name: str, lines: list[dict[str, float]]) -> Path:
    log = folder / name / "metrics.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return log


def test_runs_are_drawn_with_their_names_and_read_outs(tmp_path: Path) -> None:
    teacher = log_of(tmp_path, "teacher", [{"epoch": 1, "loss": 2.0, "test_class_top1": 0.5}])
    student = log_of(
        tmp_path,
        "student",
        [
            {"epoch": epoch, "loss": 2.0 / epoch, "test_class_top1": 0.3, "test_joint_top1": 0.1 * epoch}
            for epoch in (1, 2, 3)
        ],
    )
    draw_curves([teacher, student], tmp_path / "pictures" / "curves.svg")
    picture = (tmp_path / "pictures" / "curves.svg").read_text()
    assert "<svg" in picture
    # matplotlib writes each text as a comment next to its outlines
    assert all(f"<!-- {text} -->" in picture for text in ("teacher", "student, joint", "student, class head"))


def test_the_same_logs_give_the_same_file(tmp_path: Path) -> None:
    log = log_of(tmp_path, "run", [{"epoch": 1, "loss": 2.0, "test_class_top1": 0.5}])
    draw_curves([log], tmp_path / "a.png")
    draw_curves([log], tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("content", ["", "no json\n", '{"epoch": 1}\n', "[1]\n"])
def test_a_file_that_is_no_log_is_named_and_nothing_drawn(tmp_path: Path, content: str) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text(content)
    with pytest.raises(DataError, match=r"metrics\.jsonl"):
        draw_curves([log], tmp_path / "curves.svg")
    assert not (tmp_path / "curves.svg").exists()
