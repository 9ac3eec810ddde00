import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deit.errors import DataError, TrainingError
from tests.training.test_loop import CONVNET, EVERYTHING, config, metrics_of, same, weights_of
from training.config import TrainConfig
from training.loop import train
from training.teacher_cache import Form, TeacherCache

AUGMENTED = {**EVERYTHING, "features": "none", "epochs": 2}


@pytest.fixture(scope="module")
def teacher(colours_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    convnet = {"model": "resnet18", "model_arg": CONVNET, "image_size": 32, "epochs": 1, "warmup_epochs": 0}
    train(config(colours_data, runs, name="teacher", **convnet))
    return runs / "teacher" / "checkpoint"


@pytest.fixture(scope="module")
def kept(colours_data: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A finished run of one epoch with its cache."""
    runs = tmp_path_factory.mktemp("runs")
    cached = {"teacher": str(teacher), "teacher_cache": runs / "cache", "epochs": 1, "warmup_epochs": 0}
    run = config(colours_data, runs, name="kept", **{**AUGMENTED, **cached})
    train(run)
    return run


@pytest.fixture
def unusable(teacher: Path, tmp_path: Path) -> str:
    """The teacher's weights in a folder from which nobody can load it."""
    folder = tmp_path / "unusable"
    folder.mkdir()
    shutil.copyfile(teacher / "model.safetensors", folder / "model.safetensors")
    description = json.loads((teacher / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**description, "architecture": "resnet19"}))
    return str(folder)


def test_hard_labels_from_the_cache_give_the_same_bits_without_the_teacher(
    colours_data: Path, teacher: Path, unusable: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = config(colours_data, tmp_path, name="plain", teacher=str(teacher), **AUGMENTED)
    writing = replace(plain, name="writing", teacher_cache=tmp_path / "cache")
    reading = replace(writing, name="reading", teacher=unusable)
    for run in (plain, writing):
        train(run)
    with caplog.at_level("INFO"):
        train(reading)
    assert f"the teacher's outputs are read from {tmp_path / 'cache'}; the teacher is not loaded" in caplog.text
    for name in ("writing", "reading"):
        for checkpoint in ("checkpoint", "checkpoint-ema"):
            assert same(weights_of(tmp_path / name, checkpoint), weights_of(tmp_path / "plain", checkpoint))
    files = sorted(file.name for file in (tmp_path / "cache").iterdir())
    assert files == ["epoch-0001.npz", "epoch-0002.npz", "key.json"]
    with np.load(tmp_path / "cache" / "epoch-0001.npz") as content:
        assert (content["codes"].dtype, content["codes"].shape) == (np.int16, (192, 1))

    # a longer run reads what is there and asks for the rest
    train(replace(writing, name="longer", epochs=3))
    assert (tmp_path / "cache" / "epoch-0003.npz").is_file()


def test_a_run_stopped_within_an_epoch_leaves_whole_epochs_alone(
    colours_data: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    run = config(
        colours_data, tmp_path, name="run", teacher=str(teacher), teacher_cache=cache, **{**AUGMENTED, "epochs": 5}
    )

    keep = TeacherCache.keep

    def keep_and_stop(self: TeacherCache, step: int, turn: int, logits: torch.Tensor) -> torch.Tensor:
        if turn == 0 and (cache / "epoch-0001.npz").is_file():
            signal.raise_signal(signal.SIGTERM)  # Ctrl-C does the same, but a shell may have its jobs ignore it
        return keep(self, step, turn, logits)

    with monkeypatch.context() as patched, pytest.raises(TrainingError, match=r"stopped after step 1 of epoch 2"):
        patched.setattr(TeacherCache, "keep", keep_and_stop)
        train(run)
    assert len(metrics_of(run.folder)) == len(list(cache.glob("epoch-*.npz"))) == 1
    train(replace(run, resume=True))
    assert len(list(cache.glob("epoch-*.npz"))) == 5
    assert all(len(str(line["learning_rate"])) < 14 for line in metrics_of(run.folder)), "six digits are enough"
    train(replace(run, name="whole", teacher_cache=None))
    assert same(weights_of(tmp_path / "whole"), weights_of(run.folder))
    train(replace(run, name="reading"))
    assert same(weights_of(tmp_path / "whole"), weights_of(tmp_path / "reading"))


@pytest.mark.parametrize("distillation", ["soft", "nkd"])
def test_logits_from_the_cache_give_the_bits_of_the_run_that_wrote_them(
    colours_data: Path, teacher: Path, unusable: str, tmp_path: Path, distillation: str
) -> None:
    settings = {**AUGMENTED, "distillation": distillation, "teacher_cache_logits": 2, "epochs": 1, "warmup_epochs": 0}
    writing = config(
        colours_data, tmp_path, name="writing", teacher=str(teacher), teacher_cache=tmp_path / "cache", **settings
    )
    train(writing)
    train(replace(writing, name="reading", teacher=unusable))
    assert same(weights_of(tmp_path / "reading"), weights_of(tmp_path / "writing"))


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"seed": 1}, "keeps answers for seed 0, this run has 1"),
        ({"random_erasing": 0.5}, r"keeps answers for random_erasing 0\.25, this run has 0\.5"),
        ({"train_images": 96}, "keeps answers for data"),
        ({"device_batch_size": 4}, "keeps answers for device batches of a step 2, this run has 4"),
        ({"channels_last": True}, "keeps answers for channels_last False, this run has True"),
        ({"distillation": "soft"}, "keeps answers for teacher_cache_logits None, this run has 3"),
    ],
)
def test_answers_to_other_images_are_refused_by_name(
    kept: TrainConfig, tmp_path: Path, changes: dict[str, object], finding: str
) -> None:
    with pytest.raises(TrainingError, match=finding):
        train(replace(kept, runs=tmp_path, **changes))
    assert list(tmp_path.iterdir()) == []


def test_answers_of_a_teacher_that_read_other_images_are_refused(
    kept: TrainConfig, unusable: str, tmp_path: Path
) -> None:
    file = Path(unusable, "config.json")
    description = json.loads(file.read_text())
    description["pretrained_cfg"]["mean"] = [0.5, 0.5, 0.5]
    file.write_text(json.dumps(description))
    with pytest.raises(TrainingError, match="keeps answers for teacher's images"):
        train(replace(kept, runs=tmp_path / "runs", teacher=unusable))


def test_answers_of_a_teacher_whose_classes_have_other_places_are_refused(
    kept: TrainConfig, unusable: str, tmp_path: Path
) -> None:
    file = Path(unusable, "config.json")
    description = json.loads(file.read_text())
    description["label_names"] = description["label_names"][::-1]
    file.write_text(json.dumps(description))
    with pytest.raises(TrainingError, match="keeps answers for teacher's classes None, this run has"):
        train(replace(kept, runs=tmp_path / "runs", teacher=unusable))


def test_answers_without_their_key_are_refused(kept: TrainConfig, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(kept.teacher_cache, cache)
    (cache / "key.json").unlink()
    with pytest.raises(TrainingError, match=r"has epoch-0001\.npz without the key\.json"):
        train(replace(kept, name="keyless", teacher_cache=cache))


def test_a_damaged_epoch_is_named(kept: TrainConfig, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(kept.teacher_cache, cache)
    file = cache / "epoch-0001.npz"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"epoch-0001\.npz is damaged .*: remove it, and the teacher will run again"):
        train(replace(kept, name="again", teacher_cache=cache))


def test_the_best_logits_and_the_mass_of_the_rest_survive() -> None:
    logits = 4 * torch.randn(64, 100, generator=torch.Generator().manual_seed(0))
    form = Form(classes=100, best=10, temperature=3.0)
    decoded = form.decode(form.encode(logits))
    before, after = ((each / 3).softmax(dim=-1) for each in (logits, decoded))
    best = logits.topk(10).indices
    assert torch.allclose(before.gather(1, best), after.gather(1, best), rtol=5e-3)
    moved = (before - after).abs().sum(dim=1) / 2
    assert moved.max() <= (1 - before.gather(1, best).sum(dim=1)).max()  # no more than what the rest has
    assert form.error(logits, decoded) == pytest.approx(moved.sum())
    whole = Form(classes=100, best=100, temperature=1.0)
    assert whole.error(logits, whole.decode(whole.encode(logits))) < 64 * 1e-3


@pytest.mark.parametrize("changes", [{}, {"teacher": "x", "features": "vitkd"}])
def test_a_cache_without_logits_to_keep_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="--teacher-cache stores logits and classes: it needs a --teacher"):
        TrainConfig(data=tmp_path, name="run", teacher_cache=tmp_path, **changes)
