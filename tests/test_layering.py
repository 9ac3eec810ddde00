"""Who may import whom: the promise behind `make serve` without torch, and behind stages that talk through files."""

import ast
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY_ROOT

STAGES = {"deit", "training", "export", "serving", "benchmark", "bulk"}
HEAVY = {"torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime", "tensorrt", "pyarrow", "ray"}

# stage -> stages it may import (a dotted name allows that module only)
ALLOWED = {
    "deit": set(),
    "training": {"deit"},
    "export": {"deit", "training.model", "training.checkpoint", "training.images"},
    "serving": {"deit"},
    "benchmark": {"deit", "training", "export", "serving"},
    "bulk": {"deit", "serving.gateway.images", "serving.gateway.errors"},
}
# Stages that stay free of heavy libraries, and what runs in Triton's own process rather than in ours.
LIGHT = {"deit", "serving"}
PLUG_INS = {"serving/triton/backends", "deit/cuda_provider.py"}


def violations(root: Path) -> list[str]:
    """Every import below `root` that the rules forbid, also inside functions, as `file:line imports name`."""
    found = []
    for stage in sorted(STAGES):
        for file in sorted((root / stage).rglob("*.py")):
            place = file.relative_to(root).as_posix()
            is_plug_in = any(place.startswith(folder) for folder in PLUG_INS)
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
                else:
                    continue
                found += [
                    f"{place}:{node.lineno} imports {name}" for name in names if _forbidden(name, stage, is_plug_in)
                ]
    return found


def _forbidden(name: str, stage: str, is_plug_in: bool) -> bool:
    package = name.partition(".")[0]
    if package in HEAVY:
        return stage in LIGHT and not is_plug_in
    if package not in STAGES or package == stage:
        # nobody imports the command line but its own __main__
        return name.startswith("deit.cli") and stage != "deit"
    return not any(name == allowed or name.startswith(f"{allowed}.") for allowed in ALLOWED[stage]) or name.startswith(
        "deit.cli"
    )


def test_no_stage_imports_what_it_must_not() -> None:
    assert violations(REPOSITORY_ROOT) == []


@pytest.mark.parametrize(
    ("file", "line", "name"),
    [
        ("serving/launcher.py", "import torch", "torch"),
        ("serving/launcher.py", "def f():\n    from timm.data import Mixup", "timm.data.Mixup"),
        ("deit/labels.py", "from training.model import Teacher", "training.model.Teacher"),
        ("export/joint.py", "from training.loop import train", "training.loop.train"),
        ("training/loop.py", "from deit.cli import main", "deit.cli.main"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, file: str, line: str, name: str) -> None:
    for stage in STAGES:
        shutil.copytree(REPOSITORY_ROOT / stage, tmp_path / stage)
    planted = tmp_path / file
    planted.write_text(f"{planted.read_text()}\n{line}\n")
    assert [finding.partition(" ")[2] for finding in violations(tmp_path)] == [f"imports {name}"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        *(
            [name, "--help"]
            for name in ("serve", "triton", "train", "export", "classify", "models", "classify-dataset")
        ),
    ],
)
def test_help_loads_no_heavy_library(arguments: list[str]) -> None:
    program = (
        "import sys; sys.argv = ['deit', *sys.argv[1:]]\n"
        "from deit.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        f"print('loaded', sorted({HEAVY | {'fastapi', 'grpc', 'uvicorn'}!r} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded []"


def test_help_of_serve_takes_less_than_half_a_second() -> None:
    deit = Path(sys.executable).with_name("deit")
    # the first run may compile what no other has compiled yet
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    durations = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([deit, "serve", "--help"], env=environment, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # processor time, because other processes may have the cores; it waits for nothing, so alone it is the wall time
        durations.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(durations) < 0.5
