"""What runs in NVIDIA's image, with fakes at its boundary: there is no GPU and no such image here."""

import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serving.embedded.command_line import triton_options
from serving.settings import TritonPorts
from tests.conftest import REPOSITORY_ROOT

GPU = REPOSITORY_ROOT / "deploy" / "gpu"
build_plans = runpy.run_path(str(GPU / "build_plans.py"))


def test_triton_starts_with_the_options_of_its_version():
    ours = triton_options(
        (2, 72),
        model_repository=Path("/models"),
        backend_directory=Path("/backends"),
        shared_memory_prefix="deit-",
        ports=TritonPorts(http=8000),
        host="0.0.0.0",
        control_key=None,
        traces_url=None,
    )
    wanted = dict(option.partition("=")[::2] for option in ours if not option.startswith("--backend"))
    started = dict(re.findall(r"^    (--[a-z0-9-]+)=?(.*?) ?\\?$", (GPU / "start").read_text(), re.MULTILINE))
    for option in ("--model-repository", "--grpc-restricted-protocol"):
        assert wanted.pop(option)
        assert started.pop(option)
    assert started == wanted


FAKE_TRTEXEC = """#!{python}
import sys
options = dict(each.partition("=")[::2] for each in sys.argv[1:])
open({log!r}, "a").write(" ".join(sys.argv[1:]) + "\\n")
if {fails}:
    sys.exit("no implementation for a layer")
open(options["--saveEngine"], "w").write("plan of " + options["--onnx"])
open(options["--timingCacheFile"], "a").write("timings")
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """run(fails=False, gpu=...) -> the lines said, on a machine with a GPU, a TensorRT and a trtexec of tmp_path."""
    for folder in ("plans", "cache", "lib/x86_64-linux-gnu", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copytree(REPOSITORY_ROOT / "model_repository" / "deit_cifar10", tmp_path / "models" / "deit_cifar10")
    (tmp_path / "lib/x86_64-linux-gnu/libnvinfer.so.11.1.0").touch()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:/usr/bin:/bin")

    def program(name: str, text: str) -> str:
        path = tmp_path / "bin" / name
        path.write_text(text)
        path.chmod(0o755)
        return str(path)

    def run(*, fails: bool = False, gpu: str = "NVIDIA H100 80GB HBM3, 9.0") -> list[str]:
        program("nvidia-smi", f"#!/bin/sh\necho '{gpu}'\n" if gpu else "#!/bin/sh\nexit 9\n")
        log = tmp_path / "trtexec.log"
        log.unlink(missing_ok=True)
        trtexec = program("trtexec", FAKE_TRTEXEC.format(python=sys.executable, log=str(log), fails=fails))
        build_plans["main"](
            tmp_path / "models", tmp_path / "plans", tmp_path / "cache", trtexec=trtexec, libraries=tmp_path / "lib"
        )
        return log.read_text().splitlines() if log.exists() else []

    run.model = tmp_path / "plans" / "repository" / "deit_cifar10"
    run.root = tmp_path
    return run


def test_a_plan_is_built_once_for_a_machine(machine):
    (command,) = machine()
    size = re.search(r"dims: (\d+)", (machine.root / "models/deit_cifar10/config.pbtxt").read_text())[1]
    assert f"--minShapes=images:1x{size}x{size}x3" in command
    assert f"--maxShapes=images:32x{size}x{size}x3" in command
    assert "--noTF32" in command.split(), "float32 is float32"
    assert (machine.model / "1/model.plan").read_text().startswith("plan of")
    assert not (machine.model / "1/model.onnx").exists()
    config = (machine.model / "config.pbtxt").read_text()
    assert 'backend: "tensorrt"' in config
    assert "preferred_batch_size" not in config, "8 at once is for processors"
    assert (machine.model / "labels.txt").exists()
    assert machine() == [], "it fits and is kept"
    assert json.loads((machine.model / "plan.json").read_text())["tensorrt"] == "11.1.0"


def test_another_gpu_tensorrt_or_model_gets_another_plan(machine):
    assert machine()
    assert machine(gpu="NVIDIA L4, 8.9")
    (machine.root / "lib/x86_64-linux-gnu/libnvinfer.so.11.1.0").rename(
        machine.root / "lib/x86_64-linux-gnu/libnvinfer.so.11.2.0"
    )
    assert machine(gpu="NVIDIA L4, 8.9")
    with (machine.root / "models/deit_cifar10/labels.txt").open("a") as labels:
        labels.write("zebra\n")
    assert machine(gpu="NVIDIA L4, 8.9")


@pytest.mark.parametrize("circumstances", [{"fails": True}, {"gpu": ""}])
def test_without_a_plan_the_model_stays_onnx(machine, circumstances, capsys):
    machine()
    machine(**{"gpu": "NVIDIA L4, 8.9", **circumstances})
    assert (machine.model / "1/model.onnx").exists()
    assert not list(machine.model.glob("**/*.plan"))
    config = (machine.model / "config.pbtxt").read_text()
    assert 'backend: "onnxruntime"' in config
    assert "preferred_batch_size" not in config
    assert "ONNX Runtime on CUDA" in capsys.readouterr().out
    assert [path.name for path in (machine.root / "plans").iterdir()] == ["repository"]


def test_the_script_runs_with_the_standard_library_alone(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "plans").mkdir()
    done = subprocess.run(
        [sys.executable, "-IS", GPU / "build_plans.py", tmp_path / "models", tmp_path / "plans", tmp_path / "cache"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "plans" / "repository").is_dir()
