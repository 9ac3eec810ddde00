import json
import os
import pickle
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from deit.checkpoint import read_checkpoint_config
from deit.errors import CheckpointError
from tests.training.conftest import TINY, tiny_student
from training.checkpoint import load_checkpoint, read_pytorch, save_checkpoint, write_pytorch

LABELS = ("red", "green", "blue")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    save_checkpoint(folder, tiny_student(), label_names=LABELS, preprocessing=TINY, deit={"teacher": "convnet"})
    return folder


def test_timm_opens_the_folder_without_us_and_gives_the_same_logits(checkpoint: Path) -> None:
    theirs = timm.create_model(f"local-dir:{checkpoint}", pretrained=True).eval()
    images = torch.randn(4, 3, 16, 16)
    with torch.inference_mode():
        assert torch.equal(theirs(images), load_checkpoint(checkpoint)(images))
    data = timm.data.resolve_model_data_config(theirs)
    assert (data["input_size"], data["crop_pct"], data["interpolation"]) == ((3, 16, 16), 1.0, "bicubic")


def test_timm_can_give_the_folder_another_head(checkpoint: Path) -> None:
    transferred = timm.create_model(f"local-dir:{checkpoint}", pretrained=True, num_classes=7)
    assert transferred(torch.randn(1, 3, 16, 16)).shape == (1, 7)


def test_the_description_comes_back(checkpoint: Path) -> None:
    config = read_checkpoint_config(checkpoint)
    assert config.architecture == "deit_tiny_distilled_patch16_224"
    assert config.label_names == LABELS
    assert config.preprocessing == TINY
    assert config.deit == {"teacher": "convnet"}


def test_weights_of_another_architecture_are_refused_by_name(checkpoint: Path) -> None:
    description = json.loads((checkpoint / "config.json").read_text())
    description["architecture"] = "deit_tiny_patch16_224"
    (checkpoint / "config.json").write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match="dist_token .* is not in the model"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(checkpoint: Path, file: str) -> None:
    (checkpoint / file).unlink()
    with pytest.raises(CheckpointError, match=f"has no {file}"):
        load_checkpoint(checkpoint)


def test_truncated_weights_are_refused(checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(checkpoint)


def test_a_description_that_is_no_json_is_refused(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text('{"architecture": "deit_tiny')
    with pytest.raises(CheckpointError, match="does not describe a checkpoint"):
        load_checkpoint(checkpoint)


class _Payload:
    """Pickles to a call, as a hostile checkpoint does."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("writer", [lambda content, file: torch.save(content, file), None])
def test_pickled_code_is_refused_and_never_run(tmp_path: Path, writer: object) -> None:
    canary, file = tmp_path / "canary", tmp_path / "weights.pth"
    content = {"model": _Payload(canary)}
    if writer is None:
        file.write_bytes(pickle.dumps(content))
    else:
        writer(content, file)
    with pytest.raises(CheckpointError, match="could run code, so it is refused"):
        read_pytorch(file)
    assert not canary.exists()


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(b"<html>404</html>")
    with pytest.raises(CheckpointError, match=r"weights\.pth"):
        read_pytorch(file)


def test_saving_stores_every_weight_exactly(checkpoint: Path, tmp_path: Path) -> None:
    model = tiny_student()
    save_checkpoint(tmp_path / "other", model, label_names=LABELS, preprocessing=TINY, deit={})
    stored = load_file(tmp_path / "other" / "model.safetensors")
    assert stored.keys() == model.state_dict().keys()
    assert all(torch.equal(stored[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")])
def test_a_full_disk_is_one_sentence_and_nothing_is_lost(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise error

    write_pytorch(tmp_path / "resume.pt", {"epochs_done": 1})
    before = load_file(checkpoint / "model.safetensors")
    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr("training.checkpoint.save_for_hf", full)
    with pytest.raises(CheckpointError, match=r"resume\.pt cannot be written: .* untouched"):
        write_pytorch(tmp_path / "resume.pt", {"epochs_done": 2})
    with pytest.raises(CheckpointError, match="checkpoint cannot be written: .* untouched"):
        save_checkpoint(checkpoint, tiny_student(), label_names=LABELS, preprocessing=TINY, deit={})
    assert read_pytorch(tmp_path / "resume.pt") == {"epochs_done": 1}
    assert load_file(checkpoint / "model.safetensors").keys() == before.keys()
    assert {entry.name for entry in tmp_path.iterdir() if not entry.name.startswith(".")} == {"checkpoint", "resume.pt"}


@pytest.mark.parametrize("image_size", [16, 32])
def test_a_checkpoint_serves_as_a_backbone_of_feature_maps(tmp_path: Path, image_size: int) -> None:
    model = tiny_student().eval()
    save_checkpoint(tmp_path / "checkpoint", model, label_names=("a", "b", "c"), preprocessing=TINY, deit={})
    backbone = timm.create_model(
        f"local-dir:{tmp_path / 'checkpoint'}",
        pretrained=True,
        features_only=True,
        out_indices=[0, 1],
        img_size=image_size,
    ).eval()
    assert backbone.feature_info.reduction() == [4, 4]
    model.set_input_size(img_size=image_size)
    images = torch.randn(2, 3, image_size, image_size)
    with torch.inference_mode():
        maps, expected = backbone(images), model.forward_intermediates(images, intermediates_only=True)
    assert [each.shape for each in maps] == [(2, 24, image_size // 4, image_size // 4)] * 2
    for ours, theirs in zip(maps, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
