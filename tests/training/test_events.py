"""Event files that are continued, and lost."""

import shutil
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from deit.errors import TrainingError
from training.events import event_file


def test_points_that_a_killed_run_left_are_dropped_when_it_goes_on(tmp_path: Path) -> None:
    with event_file(tmp_path, first_step=0, steps_per_epoch=10, enabled=True) as events:
        for step in range(15):
            events.step(step, {"loss": 1.0})
    with event_file(tmp_path, first_step=10, steps_per_epoch=10, enabled=True) as events:
        for step in range(10, 20):
            events.step(step, {"loss": 2.0})
    curves = EventAccumulator(str(tmp_path))
    curves.Reload()
    points = curves.Scalars("step/loss")
    assert [(point.step, point.value) for point in points] == [(step, 1.0 if step < 10 else 2.0) for step in range(20)]


def test_a_run_whose_folder_is_deleted_ends_and_says_so(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with (
        pytest.raises(TrainingError, match=rf"^{run} was deleted or moved, so the run stops"),
        event_file(run / "tensorboard", first_step=0, steps_per_epoch=10, enabled=True) as events,
    ):
        events.epoch({"epoch": 1, "loss": 2.0})
        shutil.rmtree(run)
        events.epoch({"epoch": 2, "loss": 1.0})
