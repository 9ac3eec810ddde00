"""Up to the boundary: no GPU is needed, and nothing here says that a plan was built."""

import json
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from deit.errors import RepositoryError
from deit.tensorrt_plan import Fingerprint, Machine, Profile, is_current, profiles_for, trtexec_arguments
from export import tensorrt_plan
from export.config import ExportConfig
from export.engines import candidates
from export.tensorrt_plan import build_plan, check_inspection, load_tensorrt, refuse_other_precision
from tests.conftest import REPOSITORY_ROOT

MACHINE = Machine(tensorrt="11.1.0", gpus="NVIDIA H100 80GB HBM3, 9.0")
FINGERPRINT = Fingerprint(machine=MACHINE, onnx_sha256="0" * 64, profiles=profiles_for(128))


def graph_in(number: int, path: Path) -> Path:
    weight = helper.make_tensor("weight", number, (2, 2), b"\0" * 4 * TYPE_BYTES[number], raw=True)
    graph = helper.make_graph([helper.make_node("Identity", ["weight"], ["out"])], "g", [], [], [weight])
    onnx.save(helper.make_model(graph), path)
    return path


TYPE_BYTES = {TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.BFLOAT16: 2, TensorProto.INT8: 1}


def test_trtexec_gets_both_profiles_and_no_precision_flag() -> None:
    arguments = trtexec_arguments(
        Path("a b/model.onnx"),
        Path("model.plan"),
        image="images",
        shape=(224, 224, 3),
        profiles=profiles_for(128),
        cache=Path("/cache/timing"),
    )
    assert arguments == [
        *("--onnx=a b/model.onnx", "--saveEngine=model.plan", "--stronglyTyped", "--noTF32"),
        *("--memPoolSize=workspace:2048", "--timingCacheFile=/cache/timing", "--skipInference", "--profile=0"),
        *("--minShapes=images:1x224x224x3", "--optShapes=images:8x224x224x3", "--maxShapes=images:8x224x224x3"),
        *("--profile=1", "--minShapes=images:9x224x224x3", "--optShapes=images:64x224x224x3"),
        "--maxShapes=images:128x224x224x3",
    ]


@pytest.mark.parametrize("most", [1, 8, 9, 32, 33, 512])
def test_the_profiles_take_every_batch_that_is_served_or_judged(most: int) -> None:
    profiles = profiles_for(most)
    taken = [batch for profile in profiles for batch in range(profile.smallest, profile.largest + 1)]
    assert taken == list(range(1, max(32, most) + 1))


def test_a_profile_that_falls_is_wrong() -> None:
    with pytest.raises(ValueError, match="must not decrease"):
        Profile(1, 64, 32)


@pytest.mark.parametrize(
    ("number", "precision"),
    [
        (TensorProto.FLOAT, "fp32"),
        (TensorProto.FLOAT16, "fp16"),
        (TensorProto.BFLOAT16, "bf16"),
        (TensorProto.INT8, "int8"),
    ],
)
def test_a_plan_is_built_from_a_graph_of_its_precision_alone(tmp_path: Path, number: int, precision: str) -> None:
    graph = graph_in(number, tmp_path / "model.onnx")
    refuse_other_precision(graph, precision)
    for other in {"fp32", "fp16", "bf16", "int8"} - {precision}:
        with pytest.raises(RepositoryError, match=f"computes in {precision}, and {other} was requested"):
            refuse_other_precision(graph, other)


def test_a_plan_that_is_silently_float32_is_refused() -> None:
    """The inspector's report in the form of TensorRT's documentation."""
    layers = {"Layers": [{"Name": "fc1", "Inputs": [{"Name": "x", "Format/Datatype": "Row major linear Float"}]}]}
    check_inspection(json.dumps(layers), "fp32")
    with pytest.raises(RepositoryError, match="a plan without a fp16 layer"):
        check_inspection(json.dumps(layers), "fp16")
    layers["Layers"][0]["Inputs"][0]["Format/Datatype"] = "Row major linear Half"
    check_inspection(json.dumps(layers), "fp16")


def test_only_the_same_graph_tensorrt_and_gpu_make_a_plan_current(tmp_path: Path) -> None:
    plan = tmp_path / "model.plan"
    assert not is_current(plan, FINGERPRINT)
    plan.write_bytes(b"plan")
    assert not is_current(plan, FINGERPRINT)
    (tmp_path / "fingerprint.json").write_text(FINGERPRINT.to_json())
    assert is_current(plan, FINGERPRINT)
    for changes in (
        {"machine": Machine(tensorrt="11.2.0", gpus=MACHINE.gpus)},
        {"machine": Machine(tensorrt="11.1.0", gpus="NVIDIA L4, 8.9")},
        {"onnx_sha256": "1" * 64},
        {"profiles": profiles_for(64)},
    ):
        assert not is_current(plan, Fingerprint(**{**FINGERPRINT.__dict__, **changes}))


def test_without_tensorrt_the_export_ends_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(tensorrt_plan.importlib, "import_module", absent)
    with pytest.raises(RepositoryError, match=r"TensorRT cannot be imported here .*docs/export.md.*--extra gpu"):
        candidates("fp16", "tensorrt")
    with pytest.raises(RepositoryError, match="TensorRT cannot be imported"):
        build_plan(
            graph_in(TensorProto.FLOAT16, tmp_path / "model.onnx"),
            tmp_path / "model.plan",
            precision="fp16",
            profiles=profiles_for(128),
            cache=tmp_path / "timings",
        )
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("version", ["8.6.1", "9.3.0", "12.0.0"])
def test_another_tensorrt_than_10_and_11_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(tensorrt_plan.importlib, "import_module", lambda name: SimpleNamespace(__version__=version))
    with pytest.raises(RepositoryError, match=f"TensorRT {version} is installed; plans are built with 10 and 11"):
        load_tensorrt()


def test_without_a_gpu_no_plan_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_plan.importlib, "import_module", lambda name: SimpleNamespace(__version__="11.1.0"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RepositoryError, match="PyTorch finds none here"):
        candidates("fp16", "tensorrt")


def test_tensorrt_is_a_choice_of_the_command() -> None:
    assert ExportConfig(images=Path("x"), checkpoint="deit", engine="tensorrt", precision="fp16").engine == "tensorrt"


def test_the_extra_for_gpus_is_serving_and_export_with_the_other_onnxruntime() -> None:
    extras = tomllib.loads((REPOSITORY_ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

    def names(extra: str) -> set[str]:
        """The packages of an extra, and of the extras that it names."""
        found = set()
        for requirement in extras[extra]:
            if own := re.match(r"deit-server\[(.+)\]", requirement):
                found |= set().union(*(names(part) for part in own[1].split(",")))
            else:
                found.add(re.match(r"[A-Za-z0-9_-]+", requirement)[0])
        return found

    expected = (names("serving") | names("export")) - {"onnxruntime"} | {
        "onnxruntime-gpu",
        "tensorrt",
        "nvidia-nvimgcodec-cu13",
    }
    assert names("gpu") == expected
