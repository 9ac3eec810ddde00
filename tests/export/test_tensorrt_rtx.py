"""NVIDIA's own parser and builder accept every graph for GPUs, in its types, without a GPU or a driver.

TensorRT's inspector wants a driver, because it reads a plan that is loaded. A plan for which the builder was asked for
details holds the same as text; `weights` and `kernels` read that of the one release that is locked.
"""

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from deit.durable import replaced_folder
from deit.errors import RepositoryError
from deit.tensorrt_plan import Profile, profiles_for
from export.config import ExportConfig
from export.engines import candidates
from export.gate import Thresholds
from export.graph import OPSET, OPSET_FOR_GPU, export_graph
from export.joint import JointClassifier
from export.pipeline import DTYPES, export_models
from export.quantization import quantize
from export.served import served_form
from export.tensorrt_rtx import build_plan_for, refuse_unsupported, supported_capabilities
from training.opening import timm_preprocessing

tensorrt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX has no wheel for this platform")

TI, TI_ALONE = "deit_tiny_distilled_patch16_224", "deit_tiny_patch16_224"
S, B, B384 = "deit_small_distilled_patch16_224", "deit_base_distilled_patch16_224", "deit_base_distilled_patch16_384"

Graphs = Callable[..., Path]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    """The graphs as `deit export` makes them for GPUs, each made once; `depth` blocks instead of twelve, all alike."""

    @cache
    def classifier(architecture: str, depth: int) -> JointClassifier:
        torch.manual_seed(0)
        model = timm.create_model(architecture, num_classes=1000, depth=depth).eval()
        return JointClassifier(model, timm_preprocessing(model)).eval()

    @cache
    def graph(precision: str, form: str, architecture: str = TI, depth: int = 2) -> Path:
        file = tmp_path_factory.mktemp("graph") / f"{precision}-{form}.onnx"
        side = classifier(architecture, depth).model.patch_embed.img_size[0]
        if precision == "int8":
            plain = graph("fp32", "separate", architecture, depth)
            images = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
            quantize(plain, file, images, method=form, symmetric=True)
            return file
        fused = form == "fused"
        served = served_form(classifier(architecture, depth), DTYPES[precision], for_gpu=fused)
        export_graph(served, side, file, opset=OPSET_FOR_GPU if fused else OPSET)
        return file

    return graph


def built(
    graph: Path, precision: str, capability: str = "sm89", profiles: tuple[Profile, ...] = (Profile(1, 8, 32),)
) -> str:
    """The text in the plan that TensorRT-RTX builds of the graph, which each profile repeats."""
    plan = graph.parent / capability / "model.plan"
    build_plan_for(capability, graph, plan, precision=precision, profiles=profiles)
    return plan.read_bytes().decode("latin-1")


def weights(plan: str) -> Counter[str]:
    """How many matrices of weights there are in each type."""
    found = re.findall(r"const_payload_size=\d+ dims=\{ (\d+) (\d+) \} name=\S+ .*? type=(\w+) \}", plan)
    return Counter(kind for rows, columns, kind in found if min(int(rows), int(columns)) > 1)


def kernels(plan: str, name: str) -> int:
    return len(re.findall(rf"function=\{{ name={name} ", plan))


for_gpus = pytest.mark.parametrize(
    ("precision", "form"),
    [
        ("fp32", "separate"),
        ("fp16", "fused"),
        ("fp16", "separate"),
        ("bf16", "fused"),
        pytest.param("bf16", "separate", marks=pytest.mark.soak),  # as in fp16
        ("int8", "static"),
        ("int8", "mixed"),
    ],
)


LOWER = {"fp32": "float", "fp16": "half", "bf16": "bf16", "int8": "int8"}
"""The name of a precision in the text of a plan."""


@for_gpus
def test_a_plan_computes_in_the_precision_of_its_graph_with_attention_as_one_kernel(
    graphs: Graphs, precision: str, form: str
) -> None:
    """With two blocks. The heads are always float32. If attention is separate, the patches are in half precision, like
    the parts that `mixed` does not quantize. One kernel of attention comes from one operator, and is recognised in
    separate ones; there is none in float32, the type of int8's other layers.
    """
    plan = built(graphs(precision, form), precision)
    found = weights(plan)
    assert set(found) == {LOWER[precision], "float"}
    assert found[LOWER[precision]] >= 8
    if precision != "fp32":
        assert found["float"] == {"fused": 2, "static": 2, "separate": 3, "mixed": 4}[form]
    assert kernels(plan, "_gemm_mha_v2") == (2 if precision in ("fp16", "bf16") else 0)


def test_a_graph_in_float32_with_attention_as_one_operator_is_refused(graphs: Graphs) -> None:
    """Why `deit export` makes no such graph for TensorRT; and what a refusal by the builder looks like."""
    graph = graphs("fp32", "fused")
    with pytest.raises(RepositoryError, match=r"cannot build .*fp32-fused.onnx for sm89; its log above says why"):
        built(graph, "fp32")
    assert not (graph.parent / "sm89").exists()


def test_zero_points_other_than_zero_are_refused(graphs: Graphs, tmp_path: Path) -> None:
    """Why int8 for GPUs is symmetric; and what a refusal by the parser looks like."""
    images = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    quantize(graphs("fp32", "separate"), tmp_path / "model.onnx", images, method="static")
    with pytest.raises(RepositoryError, match=r"cannot read .*model.onnx: .*[Zz]ero.point"):
        built(tmp_path / "model.onnx", "int8")


@pytest.mark.parametrize("architecture", [TI_ALONE, S, B, B384])
def test_every_deit_has_fused_attention(graphs: Graphs, architecture: str) -> None:
    """A block of each: with one token that is read and with two, 3 to 12 heads, 197 to 578 tokens."""
    attentions = kernels(built(graphs("fp16", "fused", architecture, 1), "fp16"), "_gemm_mha_v2")
    assert attentions == 1


@pytest.mark.parametrize("profiles", [(Profile(1, 1, 1),), profiles_for(128), (Profile(8, 8, 512),)])
def test_a_plan_is_built_for_the_batches_of_its_profiles(graphs: Graphs, profiles: tuple[Profile, ...]) -> None:
    graph = graphs("fp16", "fused")
    built(graph, "fp16", profiles=profiles)
    fingerprint = json.loads((graph.parent / "sm89" / "fingerprint.json").read_text())
    assert fingerprint["profiles"] == [asdict(profile) for profile in profiles]


def test_a_plan_is_built_once_for_each_compute_capability(graphs: Graphs, tmp_path: Path) -> None:
    capabilities = supported_capabilities(tensorrt)
    assert {"sm75", "sm80", "sm86", "sm89", "sm120", "sm121"} <= set(capabilities)
    graph = Path(shutil.copy(graphs("bf16", "fused"), tmp_path / "model.onnx"))

    def is_built(capability: str, largest_batch: int) -> bool:
        plan = tmp_path / capability / "model.plan"
        return build_plan_for(capability, graph, plan, precision="bf16", profiles=profiles_for(largest_batch))

    for capability in set(capabilities) - {"sm75"}:  # Turing has no bfloat16
        assert is_built(capability, 32)
        assert not is_built(capability, 32)
    assert is_built("sm120", 64)
    fingerprint = json.loads((tmp_path / "sm120" / "fingerprint.json").read_text())
    assert fingerprint["machine"] == {"tensorrt": "rtx 1.7.1", "gpus": "any of compute capability 12.0"}
    assert fingerprint["onnx_sha256"] == hashlib.sha256(graph.read_bytes()).hexdigest()


def test_a_graph_in_another_precision_than_asked_for_is_refused(graphs: Graphs) -> None:
    with pytest.raises(RepositoryError, match="computes in fp16, and bf16 was requested"):
        built(graphs("fp16", "fused"), "bf16")


def test_a_gpu_that_tensorrt_rtx_does_not_know_is_refused_by_name(pictures: Path, tmp_path: Path) -> None:
    """Before anything is exported: the checkpoint does not even exist."""
    refuse_unsupported(("sm89", "sm80"))
    with pytest.raises(RepositoryError, match=r"not build plans for sm90, only for sm75, sm80,.*--engine tensorrt"):
        export_models(config(Path("nowhere"), pictures, tmp_path, compute_capability="sm89,sm90"))


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"compute_capability": None}, "--engine tensorrt-rtx and --compute-capability.* go together"),
        (
            {"engine": "cuda", "compute_capability": "sm89"},
            "--engine tensorrt-rtx and --compute-capability.* go together",
        ),
        ({"compute_capability": "8.9"}, "--compute-capability 8.9: write 8.9 as sm89"),
        ({"compute_capability": ""}, "--compute-capability : write 8.9 as sm89"),
    ],
)
def test_wrong_usage_is_named(tmp_path: Path, changes: dict[str, str | None], finding: str) -> None:
    with pytest.raises(ValueError, match=finding):
        config(tmp_path, tmp_path, tmp_path, **changes)


def test_plans_for_a_fleet_lie_where_triton_does_not_look(checkpoint: Path, pictures: Path, tmp_path: Path) -> None:
    """Each with its graph, which the gate judged, and with a report that does not claim that the plan ran.

    The heads of this DeiT are 8 wide, for which TensorRT has no fused attention: the other form of the graph is taken.
    """
    wanted = config(checkpoint, pictures, tmp_path / "models", precision="fp16", compute_capability="SM80,sm89")
    folders = export_models(wanted)
    assert folders == [tmp_path / "models.plans" / "tiny_fp16" / capability for capability in ("sm80", "sm89")]
    assert not (tmp_path / "models").exists()
    for folder in folders:
        assert (folder / "model.plan").stat().st_size > 10_000
        fingerprint = json.loads((folder / "fingerprint.json").read_text())
        assert fingerprint["machine"]["gpus"].endswith({"sm80": " 8.0", "sm89": " 8.9"}[folder.name])
        assert fingerprint["onnx_sha256"] == hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
        report = json.loads((folder / "report.json").read_text())
        judged = report["candidates"][report["published"]]
        assert (judged["engine"], judged["precision"], judged["method"]) == ("onnxruntime", "fp16", None)
        text = (folder / "report.txt").read_text()
        assert f"The plan for {folder.name} was built but not run, because this machine has no such GPU" in text
        assert "published" not in text


def test_the_graph_in_bfloat16_is_judged_where_a_processor_has_it() -> None:
    assert [engine.title for engine in candidates("bf16", "tensorrt-rtx", ("sm89",))] == ["openvino"]


def test_a_graph_that_fails_the_gate_leaves_no_plan(
    checkpoint: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A threshold that no graph can keep stands for a graph that is wrong."""
    impossible = Thresholds(agreement=1.0, difference=0.0, neighbours=0.0, top1_loss=0.0)
    monkeypatch.setattr("export.gate.THRESHOLDS", {"fp32": impossible})
    with pytest.raises(RepositoryError, match=r"because its answers differ from PyTorch's: .*Built: nothing"):
        export_models(config(checkpoint, pictures, tmp_path / "models", compute_capability="sm89"))
    assert list(tmp_path.iterdir()) == []
    plans = tmp_path / "models.plans" / "tiny"
    for capability in ("sm80", "sm89"):
        with replaced_folder(plans / capability) as folder:
            (folder / "model.plan").touch()
    with pytest.raises(RepositoryError, match="Built: nothing"):
        export_models(config(checkpoint, pictures, tmp_path / "models", compute_capability="sm89"))
    assert [path.name for path in plans.iterdir() if path.name[0] != "."] == ["sm80"]
    assert len(list(plans.iterdir())) == 2  # sm80 is a link to a folder beside it


def test_the_plans_of_the_folder_one_is_in_lie_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path / "models")
    wanted = config(tmp_path, tmp_path, Path(), compute_capability="sm89")
    assert wanted.plans == tmp_path / "models.plans"


def config(checkpoint: Path, images: Path, repository: Path, /, **changes: object) -> ExportConfig:
    settings = {"checkpoint": str(checkpoint), "images": images, "repository": repository, "name": "tiny"}
    return ExportConfig(**{**settings, "engine": "tensorrt-rtx", **changes})


@pytest.mark.soak
@pytest.mark.parametrize("architecture", [TI_ALONE, TI, S, B, B384])
@for_gpus
def test_every_deit_is_built_whole(graphs: Graphs, precision: str, form: str, architecture: str) -> None:
    """All twelve blocks of each size in each precision; minutes."""
    attentions = kernels(built(graphs(precision, form, architecture, 12), precision), "_gemm_mha_v2")
    assert attentions == (12 if precision in ("fp16", "bf16") else 0)


@pytest.mark.soak
def test_the_real_deit_tiny_passes_the_gate_and_becomes_plans(shared_data: Path, tmp_path: Path) -> None:
    folders = export_models(
        ExportConfig(
            checkpoint=str(shared_data / "imagenet" / "deit_tiny_patch16_224.pth"),
            images=shared_data / "imagenet" / "sample500.parquet",
            repository=tmp_path / "models",
            architecture="deit_tiny_patch16_224",
            labels="imagenet-1k",
            crop_pct=0.875,
            engine="tensorrt-rtx",
            precision="fp32,fp16,bf16,int8",
            compute_capability="sm80,sm89,sm120",
        )
    )
    assert len(folders) == 4 * 3
