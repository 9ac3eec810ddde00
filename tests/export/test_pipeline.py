from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from PIL import Image

from deit.errors import CheckpointError, DataError, DeitError, RepositoryError
from deit.model import Provenance
from deit.preprocessing import resize_and_crop
from export.config import ExportConfig
from export.engines import Engine, Infer
from export.joint import JointClassifier
from export.pipeline import export_models
from export.served import served_form
from tests.export.conftest import LABELS
from tests.training.conftest import TINY
from training.checkpoint import load_checkpoint


def config(source: Path, pictures: Path, repository: Path, /, **changes: object) -> ExportConfig:
    settings = {
        "checkpoint": str(source),
        "images": pictures,
        "repository": repository,
        "parity_images": 40,
        "engine": "onnxruntime",
    }
    return ExportConfig(**{**settings, **changes})


def test_the_published_graph_gives_pytorchs_probabilities_on_pictures(
    checkpoint: Path, pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (version,) = export_models(config(checkpoint, pictures, tmp_path / "models", name="tiny"))
    assert version == tmp_path / "models" / "tiny" / "1"
    assert "has no labels, so the gate does not check top-1" in caplog.text
    assert (version.parent / "labels.txt").read_text().splitlines() == list(LABELS)

    images = np.stack([resize_and_crop(Image.open(file), TINY) for file in sorted(pictures.iterdir())])
    graph = onnxruntime.InferenceSession(version / "model.onnx", providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        reference = JointClassifier(load_checkpoint(checkpoint), TINY)(torch.from_numpy(images))
    for ours, theirs in zip(graph.run(None, {"images": images}), reference, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)

    kept = np.load(version / "reference.npz")
    assert kept["images"].shape == (32, 16, 16, 3)
    assert len(np.unique(kept["images"], axis=0)) == 32
    assert {image.tobytes() for image in kept["images"]} <= {image.tobytes() for image in images}
    with torch.inference_mode():
        answers = JointClassifier(load_checkpoint(checkpoint), TINY)(torch.from_numpy(kept["images"]))
    for name, theirs in zip([output.name for output in graph.get_outputs()], answers, strict=True):
        np.testing.assert_allclose(kept[name], theirs.numpy(), atol=1e-6)

    provenance = Provenance.from_json((version / "provenance.json").read_text())
    assert (provenance.teacher, provenance.readout, provenance.parity_images) == ("convnet", "joint-probability", 40)
    assert provenance.metrics == {"joint_top1": 0.5}
    assert provenance.parity_max_difference < 1e-5

    (version.parent / "labels.txt").write_text("cyan\nmagenta\nyellow\n")
    caplog.clear()
    with pytest.raises(RepositoryError, match="other class names than this export: choose another --name"):
        export_models(config(checkpoint, pictures, tmp_path / "models", name="tiny"))
    assert "judging" not in caplog.text, "it is refused before the work"


def test_a_graph_that_answers_differently_is_not_published(
    checkpoint: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def darker(classifier: JointClassifier, dtype: torch.dtype) -> JointClassifier:
        """The exported graph forgets part of the normalisation; the comparison runs the true classifier."""
        served = served_form(classifier, dtype)
        served.model.patch_embed.product.weight.data /= 2
        return served

    monkeypatch.setattr("export.pipeline.served_form", darker)
    with pytest.raises(RepositoryError, match="because its answers differ from PyTorch's: fp32 on onnxruntime: "):
        export_models(config(checkpoint, pictures, tmp_path / "models", name="tiny"))
    assert not (tmp_path / "models").exists()


def test_a_weights_file_of_deits_own_code_exports_under_its_architecture(pictures: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=2)
    torch.save({"model": model.state_dict()}, tmp_path / "deit.pth")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    (version,) = export_models(
        config(
            tmp_path / "deit.pth",
            pictures,
            tmp_path / "models",
            architecture="deit_tiny_distilled_patch16_224",
            labels=str(tmp_path / "names.txt"),
            crop_pct=0.875,
            parity_images=2,
        )
    )
    assert version == tmp_path / "models" / "deit_tiny_distilled_patch16_224" / "1"
    assert '\\"crop_pct\\": 0.875' in (version.parent / "config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("changes", "error", "finding"),
    [
        ({"checkpoint": "nowhere"}, CheckpointError, "--checkpoint nowhere: there is no such file or folder"),
        ({"architecture": "deit_tiny_patch16_224"}, CheckpointError, "names its architecture itself"),
        ({"labels": "nowhere.txt"}, RepositoryError, "nowhere.txt"),
        ({"labels": "imagenet-1k"}, RepositoryError, "1000 class names, but the model has 3"),
        ({"parity_images": 99}, DataError, "has 40 images, 99 are needed"),
        ({"images": Path("nowhere")}, DataError, "--images nowhere: there is no such folder or file"),
    ],
)
def test_what_cannot_be_exported_is_named_and_nothing_written(
    checkpoint: Path, pictures: Path, tmp_path: Path, changes: dict[str, object], error: type[DeitError], finding: str
) -> None:
    with pytest.raises(error, match=finding):
        export_models(config(checkpoint, pictures, tmp_path / "models", **changes))
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("content", "architecture", "finding"),
    [
        ({"head.weight": torch.zeros(3, 192)}, "deit_tiny_patch16_224", "is missing"),
        ({"head.weight": torch.zeros(3, 192)}, None, "add --architecture"),
        ({"head.weight": torch.zeros(3, 192)}, "deit_of_nobody", "has no model 'deit_of_nobody'"),
        ({"fc.weight": torch.zeros(3, 192)}, "deit_tiny_patch16_224", "has no head.weight"),
    ],
)
def test_a_weights_file_of_something_else_is_named(
    pictures: Path, tmp_path: Path, content: dict[str, torch.Tensor], architecture: str | None, finding: str
) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=finding):
        export_models(config(tmp_path / "weights.pth", pictures, tmp_path / "models", architecture=architecture))


def test_bfloat16_is_refused_for_an_engine_that_has_no_products_in_it(
    checkpoint: Path, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(RepositoryError, match="no bfloat16 products for CPUs.*--engine openvino"):
        export_models(config(checkpoint, pictures, tmp_path / "models", precision="bf16"))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_without_cuda_the_export_for_a_gpu_ends_before_it_begins(
    pictures: Path, tmp_path: Path, precision: str
) -> None:
    """With the onnxruntime for processors that is installed here: the checkpoint is not even looked for."""
    with pytest.raises(
        RepositoryError, match=r"--engine cuda needs a GPU.*has no CUDAExecutionProvider.*the extra gpu"
    ):
        export_models(config(Path("nowhere"), pictures, tmp_path / "models", engine="cuda", precision=precision))
    assert not (tmp_path / "models").exists()


def test_a_precision_that_does_not_run_keeps_no_other_from_being_published(
    checkpoint: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that refuses a graph is simulated: no operator that `deit export` writes is refused by one here."""

    def load(engine: Engine, onnx_file: Path, outputs: tuple[str, ...]) -> Infer:
        if engine.precision == "fp16":
            raise RepositoryError("ONNX Runtime cannot run float16.onnx: no kernel for Gelu(20)")
        return original(engine, onnx_file, outputs)

    original = Engine.load
    monkeypatch.setattr(Engine, "load", load)
    with pytest.raises(RepositoryError, match=r"does not run here: fp16: .*Gelu.*Published: \S+/models/tiny/1"):
        export_models(config(checkpoint, pictures, tmp_path / "models", name="tiny", precision="fp16,fp32"))
    assert [entry.name for entry in (tmp_path / "models").iterdir()] == ["tiny"]


@pytest.mark.parametrize(
    ("readout", "expected"),
    [("joint-probability", 0), ("joint-logit", 0), ("class", 1), ("distillation", 2)],
)
def test_the_readout_decides_what_probabilities_are(checkpoint: Path, readout: str, expected: int) -> None:
    images = torch.randint(0, 256, (5, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = load_checkpoint(checkpoint)
    with torch.inference_mode():
        outputs = JointClassifier(model, TINY, readout)(images)
        default = JointClassifier(model, TINY)(images)
    if expected:
        torch.testing.assert_close(outputs[0], outputs[expected])
    elif readout == "joint-logit":
        # The softmax of the mean of logits is the normalised geometric mean of both softmaxes.
        geometric = (outputs[1] * outputs[2]).sqrt()
        torch.testing.assert_close(outputs[0], geometric / geometric.sum(dim=-1, keepdim=True))
        assert not torch.allclose(outputs[0], default[0], atol=1e-3)
    else:
        torch.testing.assert_close(outputs[0], default[0])


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"precision": "fp32,int4"}, "--precision int4: choose from fp32, fp16, bf16, int8"),
        ({"engine": "gpu"}, "--engine gpu: choose from auto, onnxruntime, openvino, cuda, tensorrt"),
        ({"readout": "mean"}, "--readout mean: choose from joint-probability"),
    ],
)
def test_unknown_choices_are_wrong_usage(
    checkpoint: Path, pictures: Path, tmp_path: Path, changes: dict[str, str], finding: str
) -> None:
    with pytest.raises(ValueError, match=finding):
        config(checkpoint, pictures, tmp_path, **changes)


def test_a_checkpoint_with_code_in_it_is_refused_and_the_code_does_not_run(pictures: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (marker,))

    torch.save({"model": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(CheckpointError, match="opening it could run code, so it is refused"):
        export_models(
            config(tmp_path / "trap.pth", pictures, tmp_path / "models", architecture="deit_tiny_patch16_224")
        )
    assert not marker.exists()
