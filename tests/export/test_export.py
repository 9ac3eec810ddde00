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
from export import parity
from export.config import ExportConfig
from export.export import export_model
from export.joint import JointClassifier
from tests.export.conftest import LABELS
from tests.training.conftest import TINY
from training.checkpoint import load_checkpoint


def config(source: Path, pictures: Path, repository: Path, /, **changes: object) -> ExportConfig:
    settings = {"checkpoint": source, "images": pictures, "repository": repository, "parity_images": 40}
    return ExportConfig(**{**settings, **changes})


def test_the_published_graph_gives_pytorchs_probabilities_on_pictures(
    checkpoint: Path, pictures: Path, tmp_path: Path
) -> None:
    version = export_model(config(checkpoint, pictures, tmp_path / "models", name="tiny"))
    assert version == tmp_path / "models" / "tiny" / "1"
    assert (version.parent / "labels.txt").read_text().splitlines() == list(LABELS)

    images = np.stack([resize_and_crop(Image.open(file), TINY) for file in sorted(pictures.iterdir())])
    graph = onnxruntime.InferenceSession(version / "model.onnx", providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        reference = JointClassifier(load_checkpoint(checkpoint), TINY)(torch.from_numpy(images))
    for ours, theirs in zip(graph.run(None, {"images": images}), reference, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)

    provenance = Provenance.from_json((version / "provenance.json").read_text())
    assert (provenance.teacher, provenance.readout, provenance.parity_images) == ("convnet", "joint-probability", 40)
    assert provenance.metrics == {"joint_top1": 0.5}
    assert provenance.parity_max_difference < 1e-5


def test_a_graph_that_answers_differently_is_not_published(
    checkpoint: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Brighter(JointClassifier):
        """The exported graph forgets part of the normalisation; the comparison runs the true classifier."""

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return super().forward(images) if not torch.compiler.is_exporting() else super().forward(images // 2)

    monkeypatch.setattr("export.export.JointClassifier", Brighter)
    with pytest.raises(RepositoryError, match="tiny is not published"):
        export_model(config(checkpoint, pictures, tmp_path / "models", name="tiny"))
    assert not (tmp_path / "models").exists()


def test_no_number_never_passes_the_comparison() -> None:
    assert not parity.Parity(images=1, max_difference=float("nan"), same_top1=1).holds
    assert not parity.Parity(images=2, max_difference=0.0, same_top1=1).holds


def test_a_weights_file_of_deits_own_code_exports_under_its_architecture(pictures: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=2)
    torch.save({"model": model.state_dict()}, tmp_path / "deit.pth")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    version = export_model(
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
        ({"checkpoint": Path("nowhere")}, CheckpointError, "nowhere does not exist"),
        ({"architecture": "deit_tiny_patch16_224"}, CheckpointError, "names its architecture itself"),
        ({"labels": "nowhere.txt"}, RepositoryError, "nowhere.txt"),
        ({"labels": "imagenet-1k"}, RepositoryError, "1000 class names, but the model decides among 3"),
        ({"parity_images": 99}, DataError, "has 40 images, 99 are asked for"),
        ({"checkpoint": None, "timm": "deit_of_nobody"}, CheckpointError, "cannot give deit_of_nobody"),
    ],
)
def test_what_cannot_be_exported_is_named_and_nothing_written(
    checkpoint: Path, pictures: Path, tmp_path: Path, changes: dict[str, object], error: type[DeitError], finding: str
) -> None:
    with pytest.raises(error, match=finding):
        export_model(config(checkpoint, pictures, tmp_path / "models", **changes))
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
        export_model(config(tmp_path / "weights.pth", pictures, tmp_path / "models", architecture=architecture))


def test_real_deit_tiny_keeps_its_answers_on_real_photographs(shared_data: Path, tmp_path: Path) -> None:
    version = export_model(
        config(
            shared_data / "imagenet" / "deit_tiny_patch16_224.pth",
            shared_data / "imagenet" / "sample500.parquet",
            tmp_path / "models",
            architecture="deit_tiny_patch16_224",
            labels="imagenet-1k",
            crop_pct=0.875,
            parity_images=64,
        )
    )
    provenance = Provenance.from_json((version / "provenance.json").read_text())
    assert provenance.readout == "class"
    assert provenance.parity_max_difference < 1e-5
