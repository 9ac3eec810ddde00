"""Trained models under every name and in every layout that people use."""

import argparse
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import save_for_hf
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import Tensor, nn

from deit.errors import CheckpointError
from tests.training.conftest import TINY, tiny_student
from training.checkpoint import save_checkpoint
from training.initial import load_initial
from training.model import load_teacher
from training.opening import open_model, read_weights

ARCHITECTURE = "test_vit"  # the smallest of timm's transformers
CLASSES = 5

State = dict[str, Tensor]


def create(seed: int, **arguments: object) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model(ARCHITECTURE, num_classes=CLASSES, **arguments).eval()


TRAINED, AVERAGED = create(0), create(1)


def prefixed(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def by_deits_main(path: Path, trained: State, averaged: State) -> None:
    """https://github.com/facebookresearch/deit/blob/main/main.py, line 436."""
    optimizer = torch.optim.AdamW(create(0).parameters())
    content = {
        "model": trained,
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": {"t_in_epochs": True, "last_epoch": 3},
        "epoch": 3,
        "model_ema": averaged,
        "scaler": {"scale": 65536.0},
        "args": argparse.Namespace(model=ARCHITECTURE, lr=5e-4, data_path="imagenet", distillation_type="hard"),
    }
    torch.save(content, path)


def by_timms_train(path: Path, trained: State, averaged: State) -> None:
    """With its own saver."""
    model = create(0)
    ema = ModelEmaV3(model)
    model.load_state_dict(trained)
    ema.module.load_state_dict(averaged)
    saver = CheckpointSaver(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        args=argparse.Namespace(model=ARCHITECTURE, opt="sgd"),
        model_ema=ema,
        checkpoint_dir=str(path.parent),
        recovery_dir=str(path.parent),
    )
    saver.save_checkpoint(2, 0.5)
    (path.parent / "last.pth.tar").rename(path)


def by_lightning(path: Path, trained: State, averaged: State) -> None:
    content = {
        "epoch": 1,
        "global_step": 40,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": prefixed(trained, "model."),
        "hyper_parameters": {"lr": 0.1},
        "optimizer_states": [torch.optim.SGD(create(0).parameters(), lr=0.1).state_dict()],
    }
    torch.save(content, path)


# layout -> who writes it, whether the averaged weights are taken, and whether it says what it is
LAYOUTS: dict[str, tuple[Callable[[Path, State, State], None], bool, bool]] = {
    "DeiT's main.py": (by_deits_main, True, True),
    "timm's train.py": (by_timms_train, True, True),
    "Lightning": (by_lightning, False, False),
    "released by DeiT": (lambda path, trained, _: torch.save({"model": trained}, path), False, False),
    "state dictionary": (lambda path, trained, _: torch.save(trained, path), False, False),
    "distributed": (lambda path, trained, _: torch.save({"model": prefixed(trained, "module.")}, path), False, False),
    "compiled": (
        lambda path, trained, _: torch.save({"state_dict": prefixed(trained, "module._orig_mod.")}, path),
        False,
        False,
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_weights_file_opens_as_its_program_left_it(
    layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write, is_averaged, says_what_it_is = LAYOUTS[layout]
    path = tmp_path / "weights.pth"
    write(path, TRAINED.state_dict(), AVERAGED.state_dict())
    with caplog.at_level(logging.INFO):
        opened = open_model(str(path), "--checkpoint", architecture=None if says_what_it_is else ARCHITECTURE)
    expected = (AVERAGED if is_averaged else TRAINED).state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in opened.model.state_dict().items())
    assert ("using the averaged weights" in caplog.text) == is_averaged
    assert (opened.architecture, opened.label_names, opened.model.training) == (ARCHITECTURE, (), False)
    assert (opened.preprocessing.image_size, len(opened.weights_sha256)) == (160, 64)
    state, _ = read_weights(str(path), "--initial-checkpoint")
    assert state.keys() == expected.keys()


def test_safetensors_open(tmp_path: Path) -> None:
    save_file(TRAINED.state_dict(), tmp_path / "weights.safetensors")
    opened = open_model(str(tmp_path / "weights.safetensors"), "--checkpoint", architecture=ARCHITECTURE)
    images = torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        assert torch.equal(opened.model(images), TRAINED(images))


def test_weights_of_another_resolution_open_at_theirs(tmp_path: Path) -> None:
    larger = create(0, img_size=96)
    torch.save(larger.state_dict(), tmp_path / "weights.pth")
    opened = open_model(str(tmp_path / "weights.pth"), "--checkpoint", architecture=ARCHITECTURE)
    assert opened.preprocessing.image_size == 96
    images = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        assert torch.equal(opened.model(images), larger(images))


def test_a_convnet_opens_by_its_own_head(tmp_path: Path) -> None:
    convnet = timm.create_model("test_resnet", num_classes=7)
    torch.save(convnet.state_dict(), tmp_path / "weights.pth")
    opened = open_model(str(tmp_path / "weights.pth"), "--teacher", architecture="test_resnet")
    assert opened.model.num_classes == 7


@pytest.mark.parametrize(
    ("content", "architecture", "finding"),
    [
        (TRAINED.state_dict(), None, r"--checkpoint .*weights\.pth does not say what it is: add --architecture"),
        (TRAINED.state_dict(), "deit_of_nobody", "has no model 'deit_of_nobody'"),
        (TRAINED.state_dict(), "test_resnet", r"has no fc\.weight: it is not a classifier in the layout of timm's"),
        (TRAINED.state_dict(), "test_vit2", "weights of another architecture"),
        ({"epoch": 3, "step": 4}, ARCHITECTURE, "not hold a state dictionary, .* it has epoch, step"),
        ({"state_dict": {"a": 1}}, ARCHITECTURE, "not hold a state dictionary"),
        ({}, ARCHITECTURE, "it has nothing"),
    ],
)
def test_what_a_file_does_not_hold_is_named(
    tmp_path: Path, content: dict[str, object], architecture: str | None, finding: str
) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=finding):
        open_model(str(tmp_path / "weights.pth"), "--checkpoint", architecture=architecture)


def test_more_than_plain_arguments_beside_the_weights_is_refused_by_name(tmp_path: Path) -> None:
    content = {"model": TRAINED.state_dict(), "args": argparse.Namespace(output_dir=tmp_path)}
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"holds more than tensors \(pathlib\.PosixPath\)"):
        open_model(str(tmp_path / "weights.pth"), "--checkpoint", architecture=ARCHITECTURE)


def test_a_checkpoint_folder_says_everything(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    notes = {"teacher": "convnet", "metrics": {"joint_top1": 0.5}}
    save_checkpoint(folder, tiny_student(), label_names=("red", "green", "blue"), preprocessing=TINY, deit=notes)
    opened = open_model(str(folder), "--checkpoint")
    assert opened.architecture == "deit_tiny_distilled_patch16_224"
    assert (opened.label_names, opened.preprocessing) == (("red", "green", "blue"), TINY)
    assert (opened.teacher, opened.metrics) == ("convnet", {"joint_top1": 0.5})
    with pytest.raises(CheckpointError, match="names its architecture itself: leave --architecture out"):
        open_model(str(folder), "--checkpoint", architecture=ARCHITECTURE)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of one model in an offline cache of the Hugging Face Hub: hf-hub:us/tiny."""
    revision = "0" * 40
    repository = tmp_path / "hub" / "models--us--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    folder = repository / "snapshots" / revision
    save_checkpoint(folder, tiny_student(), label_names=("red", "green", "blue"), preprocessing=TINY, deit={})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return folder


def test_a_model_of_the_hub_opens_with_its_labels(hub: Path) -> None:
    local = open_model(str(hub), "--checkpoint")
    opened = open_model("hf-hub:us/tiny", "--checkpoint")
    assert (opened.architecture, opened.label_names) == (local.architecture, local.label_names)
    assert opened.preprocessing == local.preprocessing
    expected = local.model.state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in opened.model.state_dict().items())


def test_a_model_of_the_hub_teaches_and_is_started_from(hub: Path) -> None:
    teacher = load_teacher("hf-hub:us/tiny", label_names=("red", "green", "blue"), student=TINY)
    student = tiny_student()
    assert load_initial(student, "hf-hub:us/tiny", label_names=("red", "green", "blue"), antialias=False) == []
    assert torch.equal(student.head.weight, teacher.model.head.weight)


def test_a_model_of_transformers_is_named_as_such(hub: Path) -> None:
    (hub / "config.json").write_text(
        json.dumps({"architectures": ["DeiTForImageClassification"], "model_type": "deit"})
    )
    with pytest.raises(CheckpointError, match=r"config\.json has no 'architecture', so timm did not write it"):
        open_model("hf-hub:us/tiny", "--teacher")


@pytest.mark.parametrize("name", ["hf-hub:us/other", "test_vit.r160_in1k"])
def test_weights_that_cannot_be_fetched_are_named_with_the_next_step(hub: Path, name: str) -> None:
    with pytest.raises(
        CheckpointError, match=rf"--teacher {name}: timm .* could not load its weights: .*the connection"
    ):
        open_model(name, "--teacher")


def test_a_damaged_file_of_the_hub_is_named(hub: Path) -> None:
    weights = hub / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="could not load its weights"):
        open_model("hf-hub:us/tiny", "--teacher")


def test_without_downloads_a_name_is_enough(hub: Path) -> None:
    opened = open_model("test_vit.r160_in1k", "--pytorch", downloads=False)
    assert (opened.architecture, opened.preprocessing.image_size) == ("test_vit.r160_in1k", 160)


@pytest.mark.parametrize("name", ["runs/nobody/checkpoint", "resnet5", "us/tiny", "local-dir:runs"])
@pytest.mark.parametrize("option", ["--teacher", "--initial-checkpoint"])
def test_a_name_of_nothing_gets_one_message_from_every_option(name: str, option: str) -> None:
    def use() -> object:
        if option == "--teacher":
            return load_teacher(name, label_names=("a",), student=TINY)
        return load_initial(tiny_student(), name, label_names=("a",), antialias=False)

    with pytest.raises(
        CheckpointError,
        match=rf"^{option} {name}: there is no such file or folder, and timm .* or hf-hub:OWNER/NAME\.$",
    ):
        use()


def test_a_misspelt_file_is_not_blamed_on_its_architecture() -> None:
    with pytest.raises(CheckpointError, match=r"--checkpoint weights\.pht: there is no such file or folder"):
        open_model("weights.pht", "--checkpoint", architecture=ARCHITECTURE)


@pytest.mark.parametrize(
    ("data", "finding"),
    [({"crop_mode": "border"}, "crop_mode 'border'"), ({"input_size": (3, 96, 160)}, "input_size 3 x 96 x 160")],
)
def test_a_model_of_images_that_are_not_served_is_refused(
    tmp_path: Path, data: dict[str, object], finding: str
) -> None:
    config = {**timm.data.resolve_model_data_config(TRAINED), **data}
    save_for_hf(TRAINED, str(tmp_path / "model"), safe_serialization=True, data_config=config)
    with pytest.raises(CheckpointError, match=finding):
        open_model(str(tmp_path / "model"), "--checkpoint")


def test_a_model_that_squashes_keeps_its_geometry(tmp_path: Path) -> None:
    config = {**timm.data.resolve_model_data_config(TRAINED), "crop_mode": "squash"}
    save_for_hf(TRAINED, str(tmp_path / "timms"), safe_serialization=True, data_config=config)
    opened = open_model(str(tmp_path / "timms"), "--checkpoint")
    assert opened.preprocessing.crop_mode == "squash"
    labels = tuple("abcde")
    save_checkpoint(tmp_path / "ours", opened.model, label_names=labels, preprocessing=opened.preprocessing, deit={})
    assert open_model(str(tmp_path / "ours"), "--checkpoint").preprocessing == opened.preprocessing
