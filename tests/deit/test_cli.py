import os
import subprocess
import sys
from pathlib import Path

import pytest

from deit import __version__
from deit.installation import how_to_install
from tests.short_commands import deit


def test_version() -> None:
    program = Path(sys.executable).with_name("deit")
    done = subprocess.run([program, "--version"], capture_output=True, text=True)
    assert done.stdout == f"deit-server {__version__}\n"


def test_help_names_every_subcommand() -> None:
    text = deit("--help").stdout
    assert all(name in text for name in ("train", "evaluate", "export", "serve", "benchmark"))


@pytest.mark.parametrize(
    ("arguments", "finding"),
    [
        (["sreve"], "Did you mean 'serve'"),
        (["export"], "--images"),
        (["export", "--images", "x"], "--checkpoint"),
        (["train", "--data", "x", "--name", "y", "--distillation", "hard"], "needs a --teacher"),
        (["train", "--data", "x", "--name", "y", "--batch-size", "3"], "must be even"),
        (["train", "--data", "x", "--name", "y", "--min-learning-rate", "1"], "the cosine would rise"),
        (["train", "--data", "x", "--name", "y", "--model-arg", "patch_size"], "must be KEY=VALUE"),
    ],
)
def test_wrong_usage_exits_with_2_and_names_the_finding(arguments: list[str], finding: str) -> None:
    done = deit(*arguments)
    assert done.returncode == 2
    assert finding in " ".join(done.stderr.replace("│", " ").split())


def test_failed_work_exits_with_1_and_one_line(tmp_path: Path) -> None:
    done = deit("models", "list", "--repository", "nowhere", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "deit: the model repository nowhere does not exist; write one with `deit export`, or name another folder\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from deit import cli

    monkeypatch.setattr(cli, "app", lambda: __import__("torch_that_is_not_there"))
    monkeypatch.setitem(cli.EXTRA_OF_MODULE, "torch_that_is_not_there", "training")
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == (f"deit: torch_that_is_not_there is not installed; {how_to_install('training')}")


def test_a_place_of_another_user_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from deit import cli

    def refused() -> None:  # the kernel refuses root nothing
        raise PermissionError(13, "Permission denied", "model_repository/deit")

    monkeypatch.setattr(cli, "app", refused)
    with pytest.raises(SystemExit, match=r"deit: model_repository/deit: user \d+ may not do this; give it access"):
        cli.main()


def test_a_full_disk_is_one_sentence() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "deit", "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("deit: No space left on device; make room, then run the command again")


def test_a_reader_that_has_what_it_wanted_ends_the_command_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        done = subprocess.run([sys.executable, "-m", "deit", "--help"], stdout=pipe, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == ""


def test_any_other_broken_pipe_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from deit import cli

    def write_to_a_process_that_died() -> None:
        raise BrokenPipeError

    monkeypatch.setattr(cli, "app", write_to_a_process_that_died)
    with pytest.raises(BrokenPipeError):
        cli.main()
