"""What was learned for the loss on features stays behind."""

from pathlib import Path

import torch

from deit.checkpoint import read_checkpoint_config
from export.graph import export_graph
from export.joint import JointClassifier
from export.served import served_form
from tests.training.conftest import TINY, TINY_ARGS
from tests.training.test_loop import config as training_config
from training.checkpoint import load_checkpoint, save_checkpoint
from training.loop import train
from training.model import create_model


def test_the_graph_of_a_student_of_features_is_byte_for_byte_that_of_a_plain_one_with_its_weights(
    colours_data: Path, tmp_path: Path
) -> None:
    short = {"epochs": 1, "warmup_epochs": 0}
    wide = {"model": "deit_tiny_patch16_224", "model_arg": ["patch_size=4", "embed_dim=36", "depth=3", "num_heads=3"]}
    train(training_config(colours_data, tmp_path, name="teacher", **wide, **short))
    teacher = str(tmp_path / "teacher" / "checkpoint")
    taught = {"distillation": "nkd", "features": "vitkd", "teacher": teacher}
    train(training_config(colours_data, tmp_path, name="student", **taught, **short))
    helpers = torch.load(tmp_path / "student" / "resume.pt", weights_only=True)["state"]["weights"]["features"]
    assert "generators.0.mask_token" in helpers

    folder = tmp_path / "student" / "checkpoint"
    plain = create_model(
        "deit_tiny_distilled_patch16_224", num_classes=3, image_size=16, drop_path=0, model_args=TINY_ARGS
    )
    plain.load_state_dict(load_checkpoint(folder).state_dict())
    description = read_checkpoint_config(folder)
    save_checkpoint(
        tmp_path / "plain",
        plain,
        label_names=description.label_names,
        preprocessing=TINY,
        deit=description.deit,
    )
    for source in (folder, tmp_path / "plain"):
        export_graph(served_form(JointClassifier(load_checkpoint(source), TINY)), 16, source / "model.onnx")
    for file in ("model.onnx", "model.safetensors"):
        assert (folder / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()
