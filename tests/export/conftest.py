"""A tiny checkpoint and pictures to export with."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from export.confidence import calibrated
from export.joint import JointClassifier
from tests.conftest import encoded, photograph, write_parquet
from tests.training.conftest import TINY, tiny_student
from training.checkpoint import load_checkpoint, save_checkpoint

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


@pytest.fixture(scope="session")
def labelled(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 600 images with labels that make the model right as often as a temperature of 5 would say."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (600, 1, 1, 3)) + random.normal(0, 60, (600, 16, 16, 3))
    pixels = np.clip(images, 0, 255).astype(np.uint8)
    with torch.inference_mode():
        given = JointClassifier(load_checkpoint(checkpoint), TINY)(torch.from_numpy(pixels))[0]
    truth = calibrated(given.double(), 5.0, 0.0).numpy()
    labels = [int(random.choice(len(LABELS), p=row)) for row in truth]
    folder = tmp_path_factory.mktemp("labelled")
    encoded_images = [encoded(Image.fromarray(each), "PNG") for each in pixels]
    write_parquet(folder / "test.parquet", encoded_images, labels, LABELS)
    return folder
