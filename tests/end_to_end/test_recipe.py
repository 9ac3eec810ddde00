"""From photographs in ImageNet's layout to answers over HTTP, by the commands of the README and the paper's recipe."""

import json
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from deit.cli import app
from deit.preprocessing import resize_and_crop
from tests.end_to_end.conftest import serving
from training.evaluate import joint_probabilities
from training.images import LabelledImages, decode, open_images
from training.model import Normalize, head_logits
from training.opening import open_model
from training.profile import StepProfile

CONVNET = ("--model", "resnet18", "--model-arg", "channels=[8,16,16,16]", "--model-arg", "layers=[1,1,1,1]")
TEACHER = (*CONVNET, "--name", "teacher", "--image-size", "64", "--epochs", "1", "--warmup-epochs", "0")


def write_imagenet(photographs: LabelledImages, folder: Path, count: int) -> None:
    """Folders named by WordNet ids. Each class has one photograph, so it is trained and tested on."""
    for index in range(0, len(photographs), len(photographs) // count):
        name = photographs.label_names[photographs.label(index)]
        for split in ("train", "val"):
            (folder / split / name).mkdir(parents=True)
            (folder / split / name / photographs.file_name(index)).write_bytes(photographs.encoded(index))


def deit(*arguments: str | Path) -> None:
    app([str(argument) for argument in arguments], standalone_mode=False)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("count", "batch_size", "blocks"),
    [(8, 4, 2), pytest.param(500, 50, 12, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])],
    ids=["a few classes and blocks", "all 500 photographs"],
)
def test_the_papers_recipe_goes_from_folders_to_answers(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int, batch_size: int, blocks: int
) -> None:
    data, runs = tmp_path / "imagenet", tmp_path / "runs"
    photographs = open_images(shared_data / "imagenet" / "sample500.parquet", "test")
    write_imagenet(photographs, data, count)
    images = open_images(data, "test")
    assert len(images) == len(images.label_names) >= count

    small = ("--data", data, "--runs", runs, "--batch-size", str(batch_size))
    deit("train", *small, *TEACHER)
    teacher, student = runs / "teacher" / "checkpoint", runs / "student" / "checkpoint"
    recipe = ("--preset", "deit-ti-distilled", "--epochs", "2", "--warmup-epochs", "1")
    deit(
        "train",
        *small,
        *recipe,
        "--name",
        "student",
        "--teacher",
        teacher,
        "--report",
        "--model-arg",
        f"depth={blocks}",
    )
    settings = json.loads((runs / "student" / "config.json").read_text())
    assert (settings["repeated_augmentation"], settings["ema_decay"], settings["image_size"]) == (3, 0.99996, 224)
    assert len((runs / "student" / "metrics.jsonl").read_text().splitlines()) == 2
    assert "joint, averaged weights" in (runs / "student" / "report.md").read_text()

    deit("evaluate", "--data", data, "--checkpoint", student, "--output", tmp_path / "evaluation.json")
    output = capsys.readouterr().out
    assert "joint probability (paper)" in output
    assert f"{len(images)} images of {data}, shorter side to 256 pixels, crop of 224" in output
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())["evaluation"]
    last = json.loads((runs / "student" / "metrics.jsonl").read_text().splitlines()[-1])
    assert evaluation["accuracy"]["joint_top1"] == pytest.approx(last["val_joint_top1"], abs=1e-5)

    repository = tmp_path / "models"
    judged = ("--images", data, "--parity-images", str(min(len(images), 64)), "--engine", "onnxruntime")
    deit("export", "--checkpoint", student, "--name", "deit_ti", *judged, "--repository", repository)

    trained = open_model(str(student), "--checkpoint")
    preprocessing = trained.preprocessing
    pixels = torch.from_numpy(resize_and_crop(decode(images, 3), preprocessing).copy()).permute(2, 0, 1)[None]
    with torch.inference_mode():
        expected = joint_probabilities(*head_logits(trained.model, Normalize(preprocessing)(pixels)))[0].numpy()
    with serving(repository) as url:
        answer = httpx.post(f"{url}/classify", files={"image": images.encoded(3)}, params={"top_k": 5}, timeout=60)
    assert answer.status_code == 200, answer.text
    predictions = answer.json()["predictions"]
    best = np.argsort(-expected)[:5]
    assert [prediction["label"] for prediction in predictions] == [trained.label_names[index] for index in best]
    # The gateway decodes and crops as above; the graph adds up in another order than PyTorch.
    np.testing.assert_allclose([prediction["probability"] for prediction in predictions], expected[best], atol=1e-5)


@pytest.mark.soak
def test_once_its_data_is_there_a_step_is_model_loss_and_optimiser(shared_data: Path, tmp_path: Path) -> None:
    """A ratio of times: meant for an idle machine."""
    write_imagenet(open_images(shared_data / "imagenet" / "sample500.parquet", "test"), tmp_path / "imagenet", 125)
    small = ("--data", tmp_path / "imagenet", "--runs", tmp_path / "runs", "--batch-size", "32")
    deit("train", *small, *TEACHER)
    recipe = ("--preset", "deit-ti-distilled", "--epochs", "1", "--warmup-epochs", "0")
    teacher = tmp_path / "runs" / "teacher" / "checkpoint"
    deit("train", *small, *recipe, "--name", "student", "--teacher", teacher, "--profile")
    steps = json.loads((tmp_path / "runs" / "student" / "profile.json").read_text())
    assert StepProfile(torch.device("cpu"), True, steps).learning_share() >= 0.95
