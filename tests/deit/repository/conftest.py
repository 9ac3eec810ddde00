"""A repository with the model that ships, and `deit models` as its users run it."""

import contextlib
import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deit.cli import main
from tests.conftest import REPOSITORY_ROOT

SHIPPED = REPOSITORY_ROOT / "model_repository" / "deit_cifar10"

Deit = Callable[..., str]
Models = Callable[[Path], Deit]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One model, `tiny`, with one version."""
    shutil.copytree(SHIPPED, tmp_path / "models" / "tiny")
    change(tmp_path / "models" / "tiny" / "config.pbtxt", 'name: "deit_cifar10"', 'name: "tiny"')
    return tmp_path / "models"


def change(config: Path, before: str, after: str) -> None:
    """Edit a config.pbtxt by hand."""
    assert before in config.read_text()
    config.write_text(config.read_text().replace(before, after))


@pytest.fixture
def deit(monkeypatch: pytest.MonkeyPatch) -> Deit:
    """What a command prints, where only the extra [serving] is installed: no torch, no onnx, no OpenVINO."""
    for name in ("torch", "timm", "onnx", "pyarrow", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)

    def run(*arguments: object, status: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["deit", *map(str, arguments)])
        output = io.StringIO()
        with contextlib.redirect_stdout(output), pytest.raises(SystemExit) as end:
            main()
        code = end.value.code or 0
        if isinstance(code, str):  # sys.exit prints it on stderr and ends with 1
            output.write(code)
            code = 1
        assert code == status, output.getvalue()
        return output.getvalue()

    return run


@pytest.fixture
def models(deit: Deit) -> Models:
    """`deit models` on one repository."""
    return lambda repository: (
        lambda subcommand, *arguments, status=0: deit(
            "models", subcommand, *arguments, "--repository", repository, status=status
        )
    )
