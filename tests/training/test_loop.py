import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from deit.errors import DataError, TrainingError
from tests.training.conftest import TINY_ARGS
from tests.training.test_images import image_folder
from training import distillation
from training.config import TrainConfig
from training.evaluate_checkpoint import evaluate_checkpoint
from training.evaluate_config import EvaluateConfig
from training.loop import train
from training.model import create_model
from training.processes import Processes
from training.profile import PARTS
from training.sampler import share_out

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


@pytest.fixture(scope="module")
def transformer_teacher(colours_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformer wider and deeper than the student, with as many patches from larger ones, and one prefix token."""
    runs = tmp_path_factory.mktemp("runs")
    wide = ["patch_size=8", "embed_dim=36", "depth=3", "num_heads=3"]
    plain = {"model": "deit_tiny_patch16_224", "model_arg": wide, "image_size": 32, "mixing_probability": 0.0}
    train(config(colours_data, runs, name="teacher", epochs=3, **plain))
    assert metrics_of(runs / "teacher")[-1]["test_class_top1"] > 0.6
    return runs / "teacher" / "checkpoint"


def test_a_student_learns_through_both_heads(colours_data: Path, teacher: Path, tmp_path: Path) -> None:
    train(config(colours_data, tmp_path, name="student", distillation="hard", teacher=str(teacher)))
    metrics = metrics_of(tmp_path / "student")
    assert [line["epoch"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert all(metrics[-1][f"test_{readout}_top1"] > 0.9 for readout in ("class", "distillation", "joint"))
    origin = json.loads((tmp_path / "student" / "provenance.json").read_text())
    assert origin["versions"]["torch"] == torch.__version__
    assert (origin["data"]["train"]["images"], origin["data"]["test"]["images"]) == (192, 48)
    assert origin["data"]["train"]["fingerprint"] != origin["data"]["test"]["fingerprint"]
    description = json.loads((tmp_path / "student" / "checkpoint" / "config.json").read_text())
    assert description["deit"]["distillation"] == "hard"
    assert description["deit"]["metrics"]["joint_top1"] == pytest.approx(metrics[-1]["test_joint_top1"], abs=1e-5)


def arguments_of(settings: TrainConfig) -> list[str]:
    """The command line that asks for the same."""
    arguments: list[str] = []
    for name, value in asdict(settings).items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool) or value is None:
            arguments += [option] if value else []
        else:
            for item in value if isinstance(value, list) else [value]:
                arguments += [option, str(item)]
    return arguments


def weights_of(run: Path, checkpoint: str = "checkpoint") -> dict[str, torch.Tensor]:
    return load_file(run / checkpoint / "model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def start(command: list[str], settings: TrainConfig, *options: str) -> subprocess.Popen[str]:
    # As many threads as here: another number sums in another order.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(
        [sys.executable, *command, "-m", "deit", "train", *arguments_of(settings), *options],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_first_epoch(process: subprocess.Popen[str], run: Path) -> None:
    deadline = time.monotonic() + 240
    while not (run / "metrics.jsonl").is_file():
        if process.poll() is not None or time.monotonic() > deadline:
            process.terminate()
            raise AssertionError(f"no epoch was done; status {process.returncode}:\n{process.communicate()[1]}")
        time.sleep(0.01)


EVERYTHING = {
    "distillation": "hard",
    "features": "vitkd",
    "drop_path": 0.1,
    "random_erasing": 0.25,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "device_batch_size": 8,
    "repeated_augmentation": 3,
    "ema_decay": 0.99,
    "clip_grad_norm": 1.0,
}


EPOCHS = 8  # so many that a run is never over before a signal reaches it

TWO_PROCESSES = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.fixture(scope="module")
def uninterrupted(colours_data: Path, transformer_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("uninterrupted")
    train(config(colours_data, runs, name="whole", epochs=EPOCHS, teacher=str(transformer_teacher), **EVERYTHING))
    return runs / "whole"


def test_two_processes_do_what_one_does_in_two_turns_which_goes_on_when_they_are_stopped(
    colours_data: Path, transformer_teacher: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    taught = {"teacher": str(transformer_teacher), **EVERYTHING}
    # the number of workers changes nothing
    stopped = config(colours_data, tmp_path, name="stopped", epochs=EPOCHS, workers=2, **taught)
    process = start(TWO_PROCESSES, stopped)
    wait_for_first_epoch(process, tmp_path / "stopped")
    process.terminate()
    _, errors = process.communicate()
    assert re.search(r"deit: stopped after step \d+ of epoch \d+: --resume continues", errors)
    assert len(metrics_of(tmp_path / "stopped")) < EPOCHS

    train(replace(stopped, resume=True))
    # Exactly: halving is exact in floating point and two numbers add up to the same in either order. More processes
    # than two add in another order, and agree to rounding.
    for checkpoint in ("checkpoint", "checkpoint-ema"):
        assert same(weights_of(tmp_path / "stopped", checkpoint), weights_of(uninterrupted, checkpoint))
    without_timing = [
        [{key: value for key, value in line.items() if not key.startswith("train_")} for line in metrics_of(run)]
        for run in (tmp_path / "stopped", uninterrupted)
    ]
    assert without_timing[0] == without_timing[1]


def test_a_run_from_a_pixel_bank_resumes_from_its_last_saved_epoch_to_the_same_weights(
    colours_data: Path, teacher: Path, tmp_path: Path
) -> None:
    settings = {
        **{"distillation": "hard", "teacher": str(teacher), "pixel_bank": True, "evaluate_every": 4},
        **{"image_size": 48, "model_arg": [*STUDENT, "patch_size=12"], "ema_decay": 0.99, "epochs": EPOCHS},
    }
    whole = config(colours_data, tmp_path, name="whole", **settings)
    killed = replace(whole, name="killed", workers=1)
    process = start([], killed)
    wait_for_first_epoch(process, tmp_path / "killed")
    process.kill()
    process.communicate()
    train(replace(killed, resume=True))
    train(whole)
    for checkpoint in ("checkpoint", "checkpoint-ema"):
        assert same(weights_of(tmp_path / "killed", checkpoint), weights_of(tmp_path / "whole", checkpoint))
    first, second = metrics_of(tmp_path / "killed"), metrics_of(tmp_path / "whole")
    assert [line["loss"] for line in first] == [line["loss"] for line in second]
    assert len(first) == EPOCHS


def test_a_student_learns_from_a_pixel_bank_and_is_evaluated_exactly(
    colours_data: Path, teacher: Path, tmp_path: Path
) -> None:
    distilled = {"distillation": "hard", "teacher": str(teacher), "report": True}
    train(config(colours_data, tmp_path, name="run", pixel_bank=True, evaluate_every=4, ema_decay=0.9, **distilled))
    metrics = metrics_of(tmp_path / "run")
    assert [line["epoch"] for line in metrics if "test_joint_top1" in line] == [4, 6]
    assert [line["epoch"] for line in metrics if "test_ema_joint_top1" in line] == [4, 6]
    assert all(metrics[-1][f"test_{readout}_top1"] > 0.9 for readout in ("class", "distillation", "joint"))
    report = evaluate_checkpoint(
        EvaluateConfig(data=colours_data, checkpoint=str(tmp_path / "run" / "checkpoint"), workers=0, device="cpu")
    )
    assert report is not None
    assert report.evaluation.accuracy["joint_top1"] == pytest.approx(metrics[-1]["test_joint_top1"], abs=1e-5)
    assert f"| joint | {metrics[-1]['test_joint_top1']:.2%} |" in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.soak
@pytest.mark.parametrize("attempt", range(10))
def test_a_run_killed_at_a_random_moment_ends_with_the_same_bits(
    colours_data: Path, transformer_teacher: Path, uninterrupted: Path, tmp_path: Path, attempt: int
) -> None:
    """A moment is an epoch and how long after it, so that a step, an evaluation or a half-written file may be hit. It
    lies epochs before the end, because the duration of one is known from the uninterrupted run.
    """
    moment = random.Random(attempt)
    epochs, delay_s = moment.randrange(EPOCHS - 4), 1.5 * moment.random() * metrics_of(uninterrupted)[1]["train_s"]
    killed = config(
        colours_data, tmp_path, name="killed", epochs=EPOCHS, teacher=str(transformer_teacher), workers=1, **EVERYTHING
    )
    process = start([], killed)
    begun, log = tmp_path / "killed" / "config.json", tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not begun.is_file() or (epochs and not (log.is_file() and len(metrics_of(tmp_path / "killed")) >= epochs)):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    time.sleep(delay_s)  # the random part of the moment, not a wait for something
    assert process.poll() is None, "the run was over before it was killed"
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = len(metrics_of(tmp_path / "killed")) if log.is_file() else 0
    assert done < EPOCHS

    resumed = start([], killed, "--resume")
    _, errors = resumed.communicate()
    assert resumed.returncode == 0, errors
    for checkpoint in ("checkpoint", "checkpoint-ema"):
        assert same(weights_of(tmp_path / "killed", checkpoint), weights_of(uninterrupted, checkpoint))
    assert len(metrics_of(tmp_path / "killed")) == EPOCHS


def test_accumulation_changes_nothing_where_nothing_is_random(colours_data: Path, tmp_path: Path) -> None:
    plain = {"model": "deit_tiny_patch16_224", "epochs": 2, "mixing_probability": 0.0, "min_crop_area": 1.0}
    for name, device_batch_size in (("whole", None), ("parts", 4)):
        train(config(colours_data, tmp_path, name=name, device_batch_size=device_batch_size, **plain))
    losses = [[line["loss"] for line in metrics_of(tmp_path / name)] for name in ("whole", "parts")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)  # the images' crops are the same, their order is not


def test_the_average_is_evaluated_and_saved_on_its_own(colours_data: Path, tmp_path: Path) -> None:
    train(config(colours_data, tmp_path, name="run", model="deit_tiny_patch16_224", epochs=2, ema_decay=0.9))
    last = metrics_of(tmp_path / "run")[-1]
    assert last["test_class_top1"] > 0.5 < last["test_ema_class_top1"]
    average, weights = (weights_of(tmp_path / "run", name) for name in ("checkpoint-ema", "checkpoint"))
    assert not same(average, weights)
    description = json.loads((tmp_path / "run" / "checkpoint-ema" / "config.json").read_text())
    assert description["deit"]["metrics"]["class_top1"] == pytest.approx(last["test_ema_class_top1"], abs=1e-5)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains(colours_data: Path, tmp_path: Path, precision: str) -> None:
    plain = {"model": "deit_tiny_patch16_224", "channels_last": True, "epochs": 3}
    train(config(colours_data, tmp_path, name="run", precision=precision, **plain))
    metrics = metrics_of(tmp_path / "run")
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert metrics[-1]["skipped_steps"] == 0


def test_two_class_tokens_and_soft_class_distillation_learn(colours_data: Path, teacher: Path, tmp_path: Path) -> None:
    train(config(colours_data, tmp_path, name="tokens", distillation="two-class-tokens", epochs=4))
    assert metrics_of(tmp_path / "tokens")[-1]["test_joint_top1"] > 0.6
    usual = {"model": "deit_tiny_patch16_224", "distillation": "soft", "token": "class", "teacher": str(teacher)}
    train(config(colours_data, tmp_path, name="usual", epochs=4, **usual))
    assert metrics_of(tmp_path / "usual")[-1]["test_class_top1"] > 0.6


@pytest.mark.parametrize(
    "changes",
    [
        {"distillation": "nkd", "vitkd_point": "mha", "vitkd_generate": "none"},
        {"model": "deit_tiny_patch16_224", "token": "class", "vitkd_mimic": "none", "precision": "bf16"},
    ],
)
def test_a_student_learns_from_features_and_its_checkpoint_holds_nothing_else(
    colours_data: Path, transformer_teacher: Path, tmp_path: Path, changes: dict[str, object]
) -> None:
    weights = {"vitkd_reduction": "mean", "vitkd_mimic_weight": 1.0, "vitkd_generate_weight": 1.0}
    settings = {"features": "vitkd", "teacher": str(transformer_teacher), **weights, **changes}
    train(config(colours_data, tmp_path, name="run", epochs=4, **settings))
    metrics = metrics_of(tmp_path / "run")
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert metrics[-1]["test_class_top1"] > 0.6
    student = create_model(
        settings.get("model", TrainConfig.model), num_classes=3, image_size=16, drop_path=0, model_args=TINY_ARGS
    )
    assert weights_of(tmp_path / "run").keys() == student.state_dict().keys()


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
        ({"resume": True, "model": "deit_tiny_patch16_224"}, "is not a run"),
    ],
)
def test_what_cannot_work_is_found_before_anything_is_written(
    colours_data: Path, tmp_path: Path, changes: dict[str, object], finding: str
) -> None:
    with pytest.raises(TrainingError, match=finding):
        train(config(colours_data, tmp_path, name="run", **changes))
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_without_tokens_is_refused_for_features_before_anything_is_written(
    colours_data: Path, teacher: Path, tmp_path: Path
) -> None:
    unfit = {"features": "vitkd", "distillation": "hard", "teacher": str(teacher)}
    with pytest.raises(TrainingError, match="the teacher resnet18 is not a vision transformer"):
        train(config(colours_data, tmp_path, name="run", **unfit))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"features": "vitkd"}, "--features vitkd needs a --teacher"),
        ({"features": "vitkd", "teacher": "x", "vitkd_mimic": "first"}, "--vitkd-mimic 'first': must be block numbers"),
        ({"features": "vitkd", "teacher": "x", "vitkd_mimic": "none", "vitkd_generate": "none"}, "nothing to mimic"),
        ({"features": "vitkd", "teacher": "x", "vitkd_mask_ratio": 0.0}, "--vitkd-mask-ratio 0: must be above 0"),
        ({"features": "vitkd", "teacher": "x", "vitkd_reduction": "mean"}, "--vitkd-reduction mean needs"),
        ({"distillation": "nkd", "teacher": "x", "nkd_temperature": 0.0}, "--nkd-temperature 0: must be above 0"),
    ],
)
def test_options_of_features_that_contradict_each_other_are_told(
    tmp_path: Path, changes: dict[str, object], finding: str
) -> None:
    with pytest.raises(ValueError, match=finding):
        config(tmp_path, tmp_path, name="run", **changes)


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
    with pytest.raises(TrainingError, match="not finite for 20 steps in a row, until step 10 of epoch 3"):
        train(config(colours_data, tmp_path, name="run", model="deit_tiny_patch16_224"))
    assert [line["skipped_steps"] for line in metrics_of(tmp_path / "run")] == [0, 9]
    assert all(torch.isfinite(tensor).all() for tensor in weights_of(tmp_path / "run").values())


def test_a_few_losses_that_are_no_number_are_skipped(
    colours_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def breaks_once(*arguments: object) -> torch.Tensor:
        calls.append(1)
        return real_loss(*arguments) * (float("inf") if len(calls) == 7 else 1)

    real_loss = distillation.label_cross_entropy
    monkeypatch.setattr(distillation, "label_cross_entropy", breaks_once)
    train(config(colours_data, tmp_path, name="run", model="deit_tiny_patch16_224", epochs=2))
    assert [line["skipped_steps"] for line in metrics_of(tmp_path / "run")] == [1, 0]
    assert "step 6 of epoch 1 is skipped: loss inf" in caplog.text


@pytest.mark.parametrize(
    ("processes", "changes", "finding"),
    [
        (3, {}, "--batch-size 16 cannot be shared by 3 processes with 5"),
        (4, {"device_batch_size": 8}, "cannot be shared by 4 processes with 8"),
        (2, {"batch_size": 6, "mixing_probability": 1.0}, "would take 3 images, but mixup pairs them"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused(
    tmp_path: Path, processes: int, changes: dict[str, float], finding: str
) -> None:
    with pytest.raises(TrainingError, match=finding):
        share_out(config(tmp_path, tmp_path, name="run", **changes), Processes(0, processes))


def test_corrupt_images_are_counted_and_too_many_stop_the_run(tmp_path: Path) -> None:
    data = image_folder(tmp_path / "data")
    (data / "train" / "cat" / "1.jpeg").write_bytes(b"")
    small = {"model": "deit_tiny_patch16_224", "batch_size": 2, "epochs": 2}
    train(config(data, tmp_path, name="run", max_corrupt_share=0.5, **small))
    assert [line["corrupt_images"] for line in metrics_of(tmp_path / "run")] == [1, 1]
    with pytest.raises(DataError, match=r"1 of 6 images cannot be decoded.*cat/1\.jpeg"):
        train(config(data, tmp_path, name="strict", **small))


def test_a_distilled_student_is_fine_tuned_at_a_higher_resolution(
    colours_data: Path, teacher: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    distilled = {"distillation": "hard", "teacher": str(teacher)}
    train(config(colours_data, tmp_path, name="small", **distilled))
    before = metrics_of(tmp_path / "small")[-1]["test_joint_top1"]
    start = str(tmp_path / "small" / "checkpoint")
    higher = {"image_size": 24, "teacher_image_size": 48, "initial_checkpoint": start, "epochs": 1, "warmup_epochs": 0}
    with caplog.at_level("INFO"):
        train(config(colours_data, tmp_path, name="large", **higher, **distilled, learning_rate=1e-5))
    assert "resized from 4 x 4 to 6 x 6 patches" in caplog.text
    assert metrics_of(tmp_path / "large")[-1]["test_joint_top1"] > before - 0.15


def test_a_run_tells_where_its_time_went_and_draws_what_it_did(
    colours_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small = {"epochs": 3, "batch_size": 32, "device_batch_size": 16, "ema_decay": 0.9, "report": True, "profile": True}
    with caplog.at_level("INFO"):
        train(config(colours_data, tmp_path, name="run", distillation="two-class-tokens", **small))
    run, metrics = tmp_path / "run", metrics_of(tmp_path / "run")

    steps = json.loads((run / "profile.json").read_text())
    assert len(steps) == 6
    for step in steps:
        assert set(step) == set(PARTS)
        assert all(seconds >= 0 for seconds in step.values())
        assert step["student"] > 0 < step["backward"]
    # This run has no teacher. The quickest steps are compared, because a busy machine may pause in any of them.
    assert min(step["teacher"] for step in steps) < min(step["student"] for step in steps)
    # the parts are the whole: the epoch has only these steps, the loader's start and its end besides
    assert sum(sum(step.values()) for step in steps) <= metrics[-1]["train_s"] + 0.05
    assert re.search(r"once the data is there, \d+\.\d% of it is model, loss and optimiser", caplog.text)

    curves = EventAccumulator(str(run / "tensorboard"))
    curves.Reload()
    points = {tag: curves.Scalars(tag) for tag in curves.Tags()["scalars"]}
    assert [point.step for point in points["step/loss"]] == list(range(18))
    assert [point.step for point in points["test/joint_top1"]] == [6, 12, 18]
    assert [point.value for point in points["test_ema/joint_top1"]] == pytest.approx(
        [line["test_ema_joint_top1"] for line in metrics]
    )
    losses = [point.value for point in points["step/loss"]]
    assert sum(losses[-6:]) / 6 == pytest.approx(metrics[-1]["loss"], abs=1e-5)

    report = (run / "report.md").read_text()
    assert f"| joint | {metrics[-1]['test_joint_top1']:.2%} |" in report
    assert f"| joint, averaged weights | {metrics[-1]['test_ema_joint_top1']:.2%} |" in report
    assert "| batch_size | 32 |" in report
    assert "<svg" in (run / "curves.svg").read_text()


@pytest.mark.soak  # a minute of compiling
def test_a_compiled_run_learns_what_an_uncompiled_one_does(
    colours_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not any(map(shutil.which, ("g++", "clang++"))):
        pytest.skip("torch's inductor needs a C++ compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))  # nothing of earlier runs helps
    plain = {"model": "deit_tiny_patch16_224", "epochs": 2, "mixing_probability": 0.0}
    for name, is_compiled in (("compiled", True), ("eager", False)):
        train(config(colours_data, tmp_path, name=name, compile=is_compiled, **plain))
    compiled, eager = (metrics_of(tmp_path / name) for name in ("compiled", "eager"))
    # fused kernels round differently, which 24 steps amplify
    assert [line["loss"] for line in compiled] == pytest.approx([line["loss"] for line in eager], abs=1e-2)
    # the compiled model is saved under its own names, so that timm opens it
    assert weights_of(tmp_path / "compiled").keys() == weights_of(tmp_path / "eager").keys()
    assert list((tmp_path / "inductor").rglob("*.cpp"))


def test_the_start_tells_how_a_step_is_made_and_what_a_smaller_batch_would_need(
    colours_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = {"model": "deit_tiny_patch16_224", "epochs": 1, "warmup_epochs": 0, "device_batch_size": 8}
    with caplog.at_level("INFO"):
        train(config(colours_data, tmp_path, name="run", preset="small-32", learning_rate=1e-3, **plain))
    assert "a step: 16 images = 8 on a device x 1 processes x 2 in turn; 12 steps an epoch, 1 epochs" in caplog.text
    assert "DeiT's code takes --lr 0.032 and scales it by 16/512" in caplog.text
    assert "is for the preset's batch of 512; DeiT's rule gives 3.125e-05 for 16" in caplog.text
