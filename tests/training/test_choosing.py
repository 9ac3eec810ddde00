"""Keeping the best epoch, stopping early, classes of different sizes, and the report by class."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tests.training.test_loop import config, metrics_of
from training import evaluate_command
from training.checkpoint import read_pytorch, write_pytorch
from training.choosing import is_best, is_stalled
from training.class_report import ClassTally
from training.loop import train
from training.processes import Processes
from training.sampler import epoch_order


def lines(*scores: float | None) -> list[dict[str, float]]:
    """Lines of metrics.jsonl; None for an epoch that was not evaluated."""
    return [
        {"epoch": epoch} if score is None else {"epoch": epoch, "val_class_top1": score}
        for epoch, score in enumerate(scores, start=1)
    ]


def test_an_epoch_is_the_best_when_it_beats_all_before_it() -> None:
    assert is_best(lines(0.5), "val")
    assert is_best(lines(0.5, None, 0.6), "val")
    assert not is_best(lines(0.5, 0.5), "val")
    assert not is_best(lines(0.5, None), "val")  # this one was not evaluated


def test_a_run_is_stalled_when_the_best_epoch_is_long_ago() -> None:
    assert not is_stalled(lines(0.5, 0.4), "val", 2)
    assert is_stalled(lines(0.5, 0.4, 0.5), "val", 2)
    assert not is_stalled(lines(0.5, 0.4, 0.6), "val", 2)
    assert not is_stalled(lines(0.5, 0.4, 0.3, 0.2), "val", None)


def test_a_run_that_gets_no_better_ends_and_keeps_its_best_epoch(colours_data: Path, tmp_path: Path) -> None:
    still = {"learning_rate": 1e-9, "min_learning_rate": 0.0, "warmup_epochs": 0, "model": "deit_tiny_patch16_224"}
    run = config(colours_data, tmp_path, name="run", epochs=9, val_share=0.25, keep_best=True, patience=2, **still)
    train(run)
    metrics = metrics_of(run.folder)
    assert len(metrics) == 3
    assert "test_class_top1" in metrics[-1]  # the result is reported on test where the run ends
    best = json.loads((run.folder / "checkpoint-best" / "config.json").read_text())["deit"]
    assert (best["epoch"], best["metrics_of"]) == (1, "val")
    train(replace(run, resume=True))
    assert metrics_of(run.folder) == metrics
    content = read_pytorch(run.folder / "resume.pt")  # as if it had been killed with more patience
    last = content["state"]["metrics"][-1]
    content["state"]["metrics"][-1] = {name: value for name, value in last.items() if not name.startswith("test_")}
    write_pytorch(run.folder / "resume.pt", content)
    train(replace(run, resume=True))
    assert metrics_of(run.folder) == metrics
    train(replace(run, resume=True, patience=None, epochs=10))
    assert len(metrics_of(run.folder)) == 10


def test_balanced_draws_give_each_class_its_turn_and_repeat() -> None:
    labels = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
    order = epoch_order(1000, seed=0, epoch=1, repeats=1, labels=labels)
    assert labels[order].bincount().tolist() == pytest.approx([333, 333, 333], abs=60)
    assert torch.equal(order, epoch_order(1000, seed=0, epoch=1, repeats=1, labels=labels))
    assert not torch.equal(order, epoch_order(1000, seed=0, epoch=2, repeats=1, labels=labels))
    assert torch.equal(*epoch_order(1000, seed=0, epoch=1, repeats=2, labels=labels).view(-1, 2).T)


def test_the_report_by_class_counts_what_was_taken_for_what() -> None:
    tally = ClassTally(3, torch.device("cpu"))
    tally.add(torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]]), torch.tensor([0, 0]))
    tally.add(torch.tensor([[0.0, 1.0, 0.0], [0.2, 0.8, 0.0]]), torch.tensor([1, 0]))
    report = tally.result(Processes(), readout="class", label_names=("crane", "dog", "crane"))
    assert report.accuracy == (pytest.approx(1 / 3), 1.0, None)
    assert report.images == (3, 1, 0)
    assert report.confusions == ((0, 1, 2),)
    # bins of 0.9, of 1.0 and, twice wrong, of 0.8: (0.1 + 0 + 1.6) / 4
    assert report.calibration_error == pytest.approx((0.1 + 0 + 1.6) / 4)


def test_deit_evaluate_names_the_weakest_classes_and_what_they_are_taken_for(
    colours_data: Path, tmp_path: Path
) -> None:
    train(config(colours_data, tmp_path, name="run", epochs=1, warmup_epochs=0, model="deit_tiny_patch16_224"))
    arguments = ["--data", str(colours_data), "--checkpoint", str(tmp_path / "run" / "checkpoint"), "--workers", "0"]
    output = tmp_path / "report.json"
    printed = CliRunner().invoke(evaluate_command.app, [*arguments, "--device", "cpu", "--output", str(output)])
    assert printed.exit_code == 0, printed.output
    evaluation = json.loads(output.read_text())["evaluation"]
    by_class = evaluation["by_class"]
    assert sum(by_class["images"]) == 48
    mean = sum(by_class["accuracy"]) / 3
    assert mean == pytest.approx(evaluation["accuracy"]["class_top1"])
    assert f"calibration error {by_class['calibration_error']:.2%}" in printed.output
    wrong = sum(count for _, _, count in by_class["confusions"])
    assert wrong == 48 - round(48 * evaluation["accuracy"]["class_top1"])
