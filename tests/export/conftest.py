"""A tiny checkpoint and pictures to export with."""

from pathlib import Path

import pytest
import torch

from tests.conftest import encoded, photograph
from tests.training.conftest import TINY, tiny_student
from training.checkpoint import save_checkpoint

LABELS = ("red", "green", "blue")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(40):
        (folder / f"{index:02}.jpg").write_bytes(encoded(photograph(30 + index, 60 - index, seed=index)))
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distilled DeiT whose heads disagree: random weights with heads far from zero."""
    torch.manual_seed(0)
    model = tiny_student()
    for head in (model.head, model.head_dist):
        torch.nn.init.normal_(head.weight, std=2.0)
    folder = tmp_path_factory.mktemp("run") / "checkpoint"
    deit = {"teacher": "convnet", "metrics": {"joint_top1": 0.5}}
    save_checkpoint(folder, model, label_names=LABELS, preprocessing=TINY, deit=deit)
    return folder
