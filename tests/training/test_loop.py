import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deit.errors import TrainingError
from tests.training.conftest import TINY_ARGS
from training import distillation
from training.config import TrainConfig
from training.loop import train

CONVNET = ["channels=[8,16,16,16]", "layers=[1,1,1,1]"]
STUDENT = [f"{name}={value}" for name, value in TINY_ARGS.items()]


def config(data: Path, runs: Path, **changes: object) -> TrainConfig:
    settings = {
        "data": data,
        "runs": runs,
        "model_arg": STUDENT,
        "image_size": 16,
        "crop_pct": 1.0,
        "drop_path": 0.0,
        "epochs": 6,
        "warmup_epochs": 1,
        "batch_size": 16,
        "learning_rate": 3e-3,
        "random_erasing": 0.0,
        "mixing_probability": 0.5,
        "precision": "fp32",
        "workers": 0,
    }
    return TrainConfig(**{**settings, **changes})


def metrics_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def teacher(colours_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convnet trained by the same command without distillation."""
    runs = tmp_path_factory.mktemp("runs")
    train(config(colours_data, runs, name="teacher", model="resnet18", model_arg=CONVNET, image_size=32, epochs=3))
    assert metrics_of(runs / "teacher")[-1]["test_class_top1"] > 0.9
    return runs / "teacher" / "checkpoint"


def test_a_student_learns_through_both_heads(colours_data: Path, teacher: Path, tmp_path: Path) -> None:
    train(config(colours_data, tmp_path, name="student", distillation="hard", teacher=str(teacher)))
    metrics = metrics_of(tmp_path / "student")
    assert [line["epoch"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert all(metrics[-1][f"test_{readout}_top1"] > 0.9 for readout in ("class", "distillation", "joint"))
    description = json.loads((tmp_path / "student" / "checkpoint" / "config.json").read_text())
    assert description["deit"]["distillation"] == "hard"
    assert description["deit"]["metrics"]["joint_top1"] == pytest.approx(metrics[-1]["test_joint_top1"], abs=1e-5)


def test_a_killed_run_resumes_to_the_same_weights(colours_data: Path, teacher: Path, tmp_path: Path) -> None:
    whole = config(colours_data, tmp_path, name="whole", distillation="hard", teacher=str(teacher), epochs=8)
    arguments = [
        *("--data", colours_data, "--runs", tmp_path, "--distillation", "hard", "--teacher", teacher, "--epochs", "8"),
        *(part for argument in STUDENT for part in ("--model-arg", argument)),
        *("--image-size", "16", "--crop-pct", "1.0", "--drop-path", "0", "--warmup-epochs", "1", "--batch-size", "16"),
        *("--learning-rate", "3e-3", "--random-erasing", "0", "--mixing-probability", "0.5"),
        *("--precision", "fp32", "--workers", "0", "--name", "killed"),
    ]
    command = [Path(sys.executable).with_name("deit"), "train", *map(str, arguments)]
    # As many threads as here: another number sums in another order.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "metrics.jsonl").is_file():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(metrics_of(tmp_path / "killed")) < 8

    subprocess.run([*command, "--resume"], env=environment, check=True, capture_output=True)
    train(whole)
    resumed, uninterrupted = (
        load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("killed", "whole")
    )
    assert all(torch.equal(resumed[name], tensor) for name, tensor in uninterrupted.items())
    without_timing = [
        [
            {key: value for key, value in line.items() if not key.startswith("train_")}
            for line in metrics_of(tmp_path / name)
        ]
        for name in ("killed", "whole")
    ]
    assert without_timing[0] == without_timing[1]


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"model": "deit_tiny_patch16_224", "distillation": "hard", "teacher": "x"}, "has no distillation token"),
        ({}, "nothing would train without a teacher"),
        ({"distillation": "hard", "teacher": "x", "token": "class"}, "leaves untrained: choose deit_tiny_patch16_224"),
        ({"model": "deit_tiny_patch16_224", "distillation": "two-class-tokens"}, "has no distillation token"),
        ({"batch_size": 1000}, "fewer than one batch"),
        ({"model": "deit_huge"}, "has no model 'deit_huge'"),
        ({"device": "cuda:99"}, "--device cuda:99"),
        ({"resume": True, "model": "deit_tiny_patch16_224"}, "is no run"),
    ],
)
def test_what_cannot_work_is_found_before_anything_is_written(
    colours_data: Path, tmp_path: Path, changes: dict[str, object], finding: str
) -> None:
    with pytest.raises(TrainingError, match=finding):
        train(config(colours_data, tmp_path, name="run", **changes))
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_never_overwritten_and_never_resumed_with_other_settings(colours_data: Path, tmp_path: Path) -> None:
    short = {"name": "run", "model": "deit_tiny_patch16_224", "epochs": 2, "warmup_epochs": 0}
    train(config(colours_data, tmp_path, **short))
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    with pytest.raises(TrainingError, match="exists: give --resume"):
        train(config(colours_data, tmp_path, **short))
    with pytest.raises(TrainingError, match=r"was started with learning_rate 0.003, not 0.001"):
        train(config(colours_data, tmp_path, **short, resume=True, learning_rate=1e-3))
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(
    colours_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def breaks_in_the_second_epoch(*arguments: object) -> torch.Tensor:
        calls.append(1)
        loss = real_loss(*arguments)
        return loss * float("nan") if len(calls) > 15 else loss  # 12 steps an epoch

    real_loss = distillation.label_cross_entropy
    monkeypatch.setattr(distillation, "label_cross_entropy", breaks_in_the_second_epoch)
    with pytest.raises(TrainingError, match="the loss is nan at step 3 of epoch 2"):
        train(config(colours_data, tmp_path, name="run", model="deit_tiny_patch16_224"))
    assert len(metrics_of(tmp_path / "run")) == 1
    weights = load_file(tmp_path / "run" / "checkpoint" / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
