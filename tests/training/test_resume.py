"""What a resumed run may change, and what it may not."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from deit.errors import TrainingError
from tests.conftest import REPOSITORY_ROOT
from tests.training.test_images import image_folder
from tests.training.test_loop import CONVNET, config, metrics_of, same, weights_of
from training.config import TrainConfig
from training.loop import train
from training.resume import stop_request

PLAIN = {"model": "deit_tiny_patch16_224", "epochs": 2, "warmup_epochs": 0, "mixing_probability": 0.0}

INTERRUPTED = """
import logging, signal
from training.resume import stop_request
logging.basicConfig(level="INFO")
signal.signal(signal.SIGINT, signal.default_int_handler)
with stop_request() as is_asked:
    signal.raise_signal(signal.SIGTERM)
    if is_asked():
        print("asked by SIGTERM")
    signal.raise_signal(signal.SIGINT)
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        print("ended by the second Ctrl-C")
"""


@pytest.fixture
def run(colours_data: Path, tmp_path: Path) -> TrainConfig:
    """A finished run of two epochs, whose data lie in a folder of their own."""
    data = tmp_path / "data"
    shutil.copytree(colours_data, data)
    finished = config(data, tmp_path / "runs", name="run", **PLAIN)
    train(finished)
    return replace(finished, resume=True)


def test_a_run_that_was_killed_in_its_first_epoch_keeps_its_settings(run: TrainConfig) -> None:
    (run.folder / "resume.pt").unlink()
    with pytest.raises(TrainingError, match=r"was started with learning_rate 0.003, not 0.001"):
        train(replace(run, learning_rate=1e-3))


def test_a_run_of_a_version_with_fewer_options_goes_on_with_their_defaults(run: TrainConfig) -> None:
    file = run.folder / "config.json"
    settings = json.loads(file.read_text())
    late = ("pixel_bank", "balanced_sampling", "channels_last", "teacher_cache_logits")
    file.write_text(json.dumps({name: value for name, value in settings.items() if name not in late}))
    train(run)
    with pytest.raises(TrainingError, match="was started with balanced_sampling False, not True"):
        train(replace(run, balanced_sampling=True))


def test_a_split_that_came_later_is_refused(run: TrainConfig) -> None:
    file = run.folder / "provenance.json"
    begun = json.loads(file.read_text())
    begun["data"]["val"] = begun["data"]["test"]
    file.write_text(json.dumps(begun))
    with pytest.raises(TrainingError, match=r"the val images of .*: 48 images of 3 classes then, no such split now"):
        train(run)


def test_data_may_move_but_not_change(run: TrainConfig, tmp_path: Path) -> None:
    moved = run.data.rename(tmp_path / "moved")
    train(replace(run, data=moved, epochs=3, max_corrupt_share=0.2, preset="small-32"))
    assert len(metrics_of(run.folder)) == 3
    settings = json.loads((run.folder / "config.json").read_text())
    assert (settings["data"], settings["epochs"], settings["max_corrupt_share"]) == (str(moved), 3, 0.2)
    (note,) = json.loads((run.folder / "provenance.json").read_text())["resumed"]
    assert note["after_epoch"] == 2
    assert note["changed"]["epochs"] == [2, 3]

    (moved / "train.parquet").write_bytes((moved / "test.parquet").read_bytes())
    with pytest.raises(
        TrainingError, match=r"the train images of .*moved are not those .*: 192 images .*, 48 images of 3"
    ):
        train(replace(run, data=moved, epochs=3))


def test_more_epochs_go_on_with_the_rate_of_the_longer_schedule(
    run: TrainConfig, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(TrainingError, match=r"started with epochs 2, not 1.*--epochs may be raised"):
        train(replace(run, epochs=1))
    with caplog.at_level("INFO"):
        train(replace(run, epochs=4))
    assert "the learning rate was 2.28e-05 and continues at 0.00151" in caplog.text  # half of the peak of 0.003
    rates = [line["learning_rate"] for line in metrics_of(run.folder)]
    assert rates[2] > rates[1] > rates[3]


def test_a_teacher_may_move_but_not_change(colours_data: Path, tmp_path: Path) -> None:
    convnet = {"model": "resnet18", "model_arg": CONVNET, "image_size": 32}
    for seed in (0, 1):
        train(config(colours_data, tmp_path, name=f"teacher-{seed}", seed=seed, **{**PLAIN, "epochs": 1, **convnet}))
    first, second = ((tmp_path / f"teacher-{seed}" / "checkpoint").resolve() for seed in (0, 1))
    student = {**PLAIN, "model": TrainConfig.model, "distillation": "hard", "epochs": 1}
    train(config(colours_data, tmp_path, name="run", teacher=str(first), **student))
    moved = str(first.rename(tmp_path / "moved"))
    longer = config(colours_data, tmp_path, name="run", resume=True, teacher=moved, **{**student, "epochs": 2})
    train(longer)
    with pytest.raises(TrainingError, match=r"the weights of --teacher .* are not those"):
        train(replace(longer, teacher=str(second)))


def test_a_corrupt_image_that_stopped_a_run_can_be_allowed(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data")
    (data / "train" / "cat" / "1.jpeg").write_bytes(b"")
    strict = config(data, tmp_path, name="run", **{**PLAIN, "batch_size": 2})
    with pytest.raises(Exception, match="or raise the share"):
        train(strict)
    train(replace(strict, resume=True, max_corrupt_share=0.5))
    assert len(metrics_of(strict.folder)) == 2


def test_the_first_signal_asks_to_stop_and_ctrl_c_then_ends() -> None:
    """In a process of its own, which started with Python's answer to Ctrl-C and which nobody else signals."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["asked by SIGTERM", "ended by the second Ctrl-C"], done
    assert "stopping after this step; Ctrl-C again ends the run at once" in done.stderr


def test_a_run_in_the_background_of_a_shell_ignores_ctrl_c() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_request() as is_asked:
            signal.raise_signal(signal.SIGINT)
            assert not is_asked()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_resumed_run_with_the_same_settings_changes_nothing(run: TrainConfig) -> None:
    before = weights_of(run.folder), (run.folder / "provenance.json").read_bytes()
    train(run)
    assert same(weights_of(run.folder), before[0])
    assert (run.folder / "provenance.json").read_bytes() == before[1]
