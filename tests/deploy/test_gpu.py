"""What runs in NVIDIA's image, with the files that its Dockerfile copies and a Python without any package.

Without a GPU and that image, these are stand-ins: `nvidia-smi` prints a line, `trtexec` takes the graph
itself for the plan, and `tritonserver` is the one of the wheel nvidia-pytriton, which runs the "plan" with our
onnxruntime backend on the CPU. The comparison is real: a real model, a real Triton, real answers over HTTP.
"""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from export.config import ExportConfig
from export.pipeline import export_models
from serving.embedded.command_line import triton_options
from serving.settings.triton import TritonPorts
from tests.conftest import REPOSITORY_ROOT
from tests.export.conftest import checkpoint, pictures  # noqa: F401

GPU = REPOSITORY_ROOT / "deploy" / "gpu"

# Beyond the options of every Triton: what its speed on a GPU needs
OF_GPUS = {
    "--grpc-infer-thread-count": "8",
    "--grpc-infer-allocation-pool-size": "512",
    "--pinned-memory-pool-byte-size": str(2**30),
}


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
    wanted = dict(option.partition("=")[::2] for option in ours if not option.startswith("--backend")) | OF_GPUS
    started = dict(re.findall(r"^    (--[a-z0-9-]+)=?(.*?) ?\\?$", (GPU / "start").read_text(), re.MULTILINE))
    for option in ("--model-repository", "--grpc-restricted-protocol"):
        assert wanted.pop(option)
        assert started.pop(option)
    assert started == wanted


def test_start_prepares_the_models_before_triton(tmp_path):
    """So that a restarted container serves what is in /models, and nothing when that cannot be served."""
    for name, text in (("python3", 'echo "$@"; exit $STATUS'), ("tritonserver", 'echo "tritonserver $1"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)

    def start(status):
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PLANS": "/p", "MODELS": "/m", "CACHE": "/c"}
        done = subprocess.run(
            [GPU / "start"], env={**environment, "STATUS": status}, capture_output=True, text=True, check=False
        )
        return done.stdout.splitlines()

    built = f"{GPU}/build_plans.py /m /p /c"
    assert start("0") == [built, "tritonserver --model-repository=/p/repository"]
    assert start("1") == [built]


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    """/gpu as the Dockerfile fills it."""
    folder = tmp_path_factory.mktemp("image") / "gpu"
    dockerfile = (REPOSITORY_ROOT / "deploy" / "images" / "triton-gpu.Dockerfile").read_text()
    *sources, target = re.search(r"^COPY (.*)$", dockerfile, re.MULTILINE)[1].split()
    assert target == "/gpu/"
    folder.mkdir()
    for source in map(REPOSITORY_ROOT.joinpath, sources):
        if source.is_dir():
            shutil.copytree(source, folder, dirs_exist_ok=True)
        else:
            shutil.copy(source, folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory, checkpoint, pictures) -> Path:  # noqa: F811
    """What `deit export` writes for processors: a distilled model, in two versions of which the second is served."""
    repository = tmp_path_factory.mktemp("models")
    export = ExportConfig(
        checkpoint=str(checkpoint), images=pictures, repository=repository, name="tiny", engine="onnxruntime"
    )
    (version,) = export_models(export)
    shutil.copytree(version, version.with_name("2"))
    change(version.parent, "versions: 1", "versions: 2")
    return repository


TRTEXEC = """
import shutil, sys
options = dict(each.partition("=")[::2] for each in sys.argv[1:])
open({log!r}, "a").write(" ".join(sys.argv[1:]) + "\\n")
if {plan!r} == "fails":
    sys.exit("[E] Non-zero zero point is not supported")
shutil.copy({graphs!r} + "/wrong.onnx" if {plan!r} == "wrong" else options["--onnx"], options["--saveEngine"])
"""

TRITONSERVER = """
import os, re, shutil, sys, tempfile
from pathlib import Path
sys.path.insert(0, {root!r})
from serving.embedded.wheel import find_wheel
options = dict(each.partition("=")[::2] for each in sys.argv[1:])
scratch = Path(tempfile.mkdtemp(dir={scratch!r}))
shutil.copytree(options.pop("--model-repository"), scratch / "models")
for file in (scratch / "models").glob("*/config.pbtxt"):
    text = file.read_text().replace("KIND_GPU", "KIND_CPU").replace('platform: "tensorrt_plan"', "")
    file.write_text(re.sub(r"^ *profile: [^\\n]*$|^optimization .*?^\\}}$", "", text, flags=re.M | re.S))
wheel = find_wheel()
wheel.assemble_backends(scratch / "backends")
shutil.copytree(scratch / "backends/onnxruntime", scratch / "backends/tensorrt")
open({log!r}, "a").write("tritonserver\\n")
command = [str(wheel.binary), f"--model-repository={{scratch}}/models", f"--backend-directory={{scratch}}/backends"]
rest = [f"{{name}}={{value}}" if value else name for name, value in options.items()]
shared_memory = "--backend-config=python,shm-region-prefix-name=gputest"
os.execve(wheel.binary, [*command, *rest, shared_memory], wheel.environment())
"""


class Machine:
    """A machine with a GPU; `run` is the start of its container, up to Triton's."""

    def __init__(self, root: Path, image: Path) -> None:
        self.root, self.image = root, image
        self.plans, self.models = root / "plans", root / "models"
        self.repository = self.plans / "repository"
        for folder in ("plans", "cache", "lib/x86_64-linux-gnu", "bin", "scratch", "models"):
            (root / folder).mkdir(parents=True)
        self.has_tensorrt("11.1.0")

    def has_tensorrt(self, version: str) -> None:
        shutil.rmtree(self.root / "lib" / "x86_64-linux-gnu")
        (self.root / "lib" / "x86_64-linux-gnu").mkdir()
        (self.root / "lib" / "x86_64-linux-gnu" / f"libnvinfer.so.{version}").touch()

    def run(self, *, plan: str = "right", gpu: str = "NVIDIA H100 80GB HBM3, 9.0", status: int = 0) -> list[str]:
        """What was run, plans by their arguments; `said` is what it printed."""
        log = self.root / "log"
        log.write_text("")
        names = {"log": str(log), "plan": plan, "graphs": str(self.root), "scratch": str(self.root / "scratch")}
        self._program("nvidia-smi", f"#!/bin/sh\necho '{gpu}'\n" if gpu else "#!/bin/sh\nexit 9\n")
        shebang = f"#!{sys.executable}\n"
        trtexec = self._program("trtexec", shebang + TRTEXEC.format(**names))
        triton = self._program("tritonserver", shebang + TRITONSERVER.format(**names, root=str(REPOSITORY_ROOT)))
        folders = ", ".join(f"Path({str(path)!r})" for path in (self.models, self.plans, self.root / "cache"))
        script = (
            f"import sys; sys.path.insert(0, {str(self.image)!r})\nfrom pathlib import Path\nimport build_plans\n"
            f"build_plans.main({folders}, trtexec={trtexec!r}, tritonserver=({triton!r},), "
            f"libraries=Path({str(self.root / 'lib')!r}))"
        )
        done = subprocess.run(
            [sys.executable, "-IS", "-c", script],
            env={**os.environ, "PATH": f"{self.root / 'bin'}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=250,
        )
        self.said = done.stdout + done.stderr
        assert done.returncode == status, self.said
        assert sorted(path.name for path in self.plans.iterdir() if path.name != ".lock") in ([], ["repository"])
        return log.read_text().splitlines()

    def config(self, model: str = "tiny") -> str:
        return (self.repository / model / "config.pbtxt").read_text()

    def _program(self, name: str, text: str) -> str:
        path = self.root / "bin" / name
        path.write_text(text)
        path.chmod(0o755)
        return str(path)


@pytest.fixture
def machine(tmp_path, image, models) -> Machine:
    machine = Machine(tmp_path, image)
    shutil.copytree(models / "tiny", machine.models / "tiny")
    spoil(machine.models / "tiny" / "2" / "model.onnx", tmp_path / "wrong.onnx")
    return machine


def spoil(graph: Path, target: Path) -> None:
    """The same graph with another head."""
    model = onnx.load(graph)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.ndim == 2 and 3 in values.shape:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values[::-1]), tensor.name))
    onnx.save(model, target)


def test_a_plan_is_compared_before_it_is_served_and_then_kept(machine):
    found = machine.run()
    assert len(found) == 2, machine.said
    trtexec, triton = found
    assert triton == "tritonserver"
    for argument in (
        *("--noTF32", "--profile=0", "--maxShapes=images:8x16x16x3", "--profile=1", "--minShapes=images:9x16x16x3"),
        "--maxShapes=images:128x16x16x3",
    ):
        assert argument in trtexec.split()
    model = machine.repository / "tiny"
    assert [path.name for path in sorted(model.iterdir())] == ["2", "built.json", "config.pbtxt", "labels.txt"]
    assert (model / "2" / "model.plan").exists()
    assert not (model / "2" / "model.onnx").exists()
    config = machine.config()
    assert 'backend: "tensorrt"' in config
    assert 'profile: ["0", "1"]' in config
    assert "max_batch_size: 128" in config
    assert "max_queue_size: 4096" in config
    assert "preferred_batch_size" not in config, "8 at once is for processors"
    assert json.loads((model / "2" / "fingerprint.json").read_text())["machine"]["tensorrt"] == "11.1.0"
    assert machine.run() == [], "it fits and is kept"

    with (machine.models / "tiny" / "labels.txt").open("a") as labels:
        labels.write("zebra\n")
    assert machine.run() == ["tritonserver"], "the plan still fits"
    machine.has_tensorrt("11.2.0")
    assert len(machine.run()) == 2
    assert len(machine.run(gpu="NVIDIA L4, 8.9")) == 2


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        ("fails", "trtexec ended with 1: [E] Non-zero zero point is not supported"),
        ("wrong", "images change their top-1 class, 0 may; probabilities differ from PyTorch's by up to"),
    ],
)
def test_a_plan_that_cannot_be_had_or_answers_wrongly_gives_way_to_onnx(machine, plan, reason):
    machine.run(plan=plan)
    assert "tiny: not as a TensorRT plan: " in machine.said
    assert reason in machine.said
    assert "tiny: served as ONNX, with ONNX Runtime on CUDA, which answers as PyTorch did" in machine.said
    assert (machine.repository / "tiny" / "2" / "model.onnx").exists()
    assert not list(machine.repository.glob("**/*.plan"))
    config = machine.config()
    assert 'backend: "onnxruntime"' in config
    assert "kind: KIND_GPU" in config
    assert 'key: "use_tf32"' in config


def test_what_answers_wrongly_in_every_form_leaves_what_was_served(machine):
    machine.run()
    before = (machine.repository / "tiny" / "2" / "model.plan").read_bytes()
    shutil.copy(machine.root / "wrong.onnx", machine.models / "tiny" / "2" / "model.onnx")
    machine.run()
    assert "tiny: cannot be served: " in machine.said
    assert "The versions served before stay" in machine.said
    assert (machine.repository / "tiny" / "2" / "model.plan").read_bytes() == before
    machine.run(gpu="NVIDIA L4, 8.9", status=1)  # a plan for another GPU does not count
    assert "no model of" in machine.said


def test_what_computes_on_processors_or_cannot_be_compared_is_left_out_by_name(machine):
    for name in ("on_openvino", "without_reference", "plan_alone"):
        shutil.copytree(machine.models / "tiny", machine.models / name)
    change(machine.models / "on_openvino", 'backend: "onnxruntime"', 'backend: "openvino"')
    (machine.models / "without_reference" / "2" / "reference.npz").unlink()
    (machine.models / "plan_alone" / "2" / "model.onnx").rename(machine.models / "plan_alone" / "2" / "model.plan")
    machine.run(plan="fails")
    for expected in (
        "on_openvino: is left out: it runs on openvino, which computes on processors: export it with --engine cuda",
        "without_reference: is left out: there is nothing to compare it with",
        "plan_alone: is left out: it came as a plan without its graph: publish it again",
    ):
        assert expected in machine.said
    assert [path.name for path in machine.repository.iterdir()] == ["tiny"]


def change(model: Path, old: str, new: str) -> None:
    text = (model / "config.pbtxt").read_text()
    assert old in text
    (model / "config.pbtxt").write_text(text.replace(old, new))


@pytest.mark.parametrize("name", ["deit_cifar10", "deit_cifar10_int8"])
def test_the_shipped_models_come_with_answers_to_compare_with(name, image):
    """Drawings with some grain, answered by the float32 graph, which the gate found within 1e-5 of PyTorch."""
    compare = runpy.run_path(str(image / "compare.py"))
    version = REPOSITORY_ROOT / "model_repository" / name / "1"
    expected = compare["read_reference"](version)
    images = np.frombuffer(b"".join(expected.images), np.uint8).reshape(-1, *expected.shape)
    session = onnxruntime.InferenceSession(version / "model.onnx", providers=["CPUExecutionProvider"])
    answers = session.run(list(expected.outputs), {"images": images})
    found = {output: rows.tolist() for output, rows in zip(expected.outputs, answers, strict=True)}
    assert list(compare["differences"](expected, found)) == []
    assert len({int(row.argmax()) for row in answers[0]}) >= 5, "a model that always says the same would be noticed"
    found["probabilities"] = found["probabilities"][::-1]
    assert "change their top-1 class" in next(compare["differences"](expected, found))


def test_without_a_gpu_nothing_is_prepared(machine):
    assert machine.run(gpu="", status=1) == []
    assert "nvidia-smi finds no GPU" in machine.said
    assert not machine.repository.exists()
