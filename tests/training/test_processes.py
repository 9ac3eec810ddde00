"""Two processes, as torchrun starts them, do together what one does alone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deit.ports import free_ports
from tests.conftest import COLOURS
from tests.training.conftest import TINY, tiny_student
from tests.training.test_loop import CONVNET, TWO_PROCESSES, arguments_of, config, metrics_of, same, weights_of
from tests.training.test_teacher_cache import AUGMENTED
from training.checkpoint import save_checkpoint
from training.config import TrainConfig
from training.evaluate_checkpoint import evaluate_checkpoint
from training.evaluate_config import EvaluateConfig
from training.loop import train
from training.processes import Processes

# Commands in turn, forked, because processes take long to import torch. Each meets its companion at a port of its own:
# torchrun's store still holds the companion's address from the command before.
COMMANDS = """
import json, os, sys
import training.loop, training.evaluate_checkpoint
from deit.cli import app
os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
for port, arguments in json.loads(sys.argv[1]):
    if (command := os.fork()) == 0:
        os.environ["MASTER_PORT"] = str(port)
        app(arguments)
    if os.waitstatus_to_exitcode(os.waitpid(command, 0)[1]):
        sys.exit(f"{arguments} failed")
"""


@pytest.fixture(scope="module")
def runs(colours_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained by one process: `teacher`. By two: `convnet`; `student`, with the teacher's `cache`; an `evaluation`."""
    runs = tmp_path_factory.mktemp("runs")
    convnet = {"model": "resnet18", "model_arg": CONVNET, "epochs": 1, "warmup_epochs": 0, "mixing_probability": 0.0}
    train(config(colours_data, runs, name="teacher", image_size=32, **convnet))
    torch.manual_seed(1)
    save_checkpoint(runs / "untrained", tiny_student(), label_names=tuple(COLOURS), preprocessing=TINY, deit={})
    evaluation = ["--data", colours_data, "--checkpoint", runs / "untrained", "--output", runs / "evaluation.json"]
    commands = [
        ["train", *arguments_of(config(colours_data, runs, name="convnet", batch_size=4, ema_decay=0.9, **convnet))],
        ["train", *arguments_of(student(colours_data, runs, "student", runs / "teacher" / "checkpoint"))],
        ["evaluate", *map(str, evaluation), "--workers", "0", "--device", "cpu"],
    ]
    turns = list(zip(free_ports(len(commands)), commands, strict=True))
    done = subprocess.run(
        [sys.executable, *TWO_PROCESSES, "--no-python", sys.executable, "-c", COMMANDS, json.dumps(turns)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return runs


def student(data: Path, runs: Path, name: str, teacher: Path) -> TrainConfig:
    return config(data, runs, name=name, teacher=str(teacher), teacher_cache=runs / "cache", **AUGMENTED)


def test_they_agree_on_what_batch_norm_has_seen(colours_data: Path, runs: Path) -> None:
    """So what they report together is what the checkpoint does: each one's last batches were others."""
    (line,) = metrics_of(runs / "convnet")
    for checkpoint, prefix in (("checkpoint", "test"), ("checkpoint-ema", "test_ema")):
        report = evaluate_checkpoint(
            EvaluateConfig(data=colours_data, checkpoint=str(runs / "convnet" / checkpoint), workers=0, device="cpu")
        )
        assert report is not None
        assert report.evaluation.loss["class"] == pytest.approx(line[f"{prefix}_class_loss"], abs=2e-5)


def test_what_they_keep_of_a_teacher_one_reads_in_two_turns(colours_data: Path, runs: Path) -> None:
    unusable = runs / "unusable"
    shutil.copytree(runs / "teacher" / "checkpoint", unusable)
    description = json.loads((unusable / "config.json").read_text())
    (unusable / "config.json").write_text(json.dumps({**description, "architecture": "resnet19"}))
    train(student(colours_data, runs, "one", unusable))
    assert same(weights_of(runs / "student"), weights_of(runs / "one"))


def test_they_count_every_image_once(colours_data: Path, runs: Path) -> None:
    alone = evaluate_checkpoint(
        EvaluateConfig(data=colours_data, checkpoint=str(runs / "untrained"), workers=0, device="cpu")
    )
    assert alone is not None
    two = json.loads((runs / "evaluation.json").read_text())["evaluation"]
    assert (two["images"], two["accuracy"]) == (48, alone.evaluation.accuracy)
    assert two["disagreement"] == [list(row) for row in alone.evaluation.disagreement]


def test_one_needs_no_companion() -> None:
    assert Processes().sum(torch.tensor([3])).tolist() == [3]
    assert Processes().union({1}) == {1}
