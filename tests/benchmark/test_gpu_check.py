"""`deit benchmark gpu-check`, rehearsed on the CPU: each step runs the code that runs on a GPU, with tiny settings."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmark.results import read
from deit.preprocessing import Preprocessing
from tests.conftest import encoded, photograph
from training.checkpoint import save_checkpoint
from training.model import create_model

LABELS = ("cat", "dog", "ship")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distilled DeiT of one block with random weights."""
    torch.manual_seed(0)
    model = create_model(
        "deit_tiny_distilled_patch16_224",
        num_classes=len(LABELS),
        image_size=32,
        drop_path=0,
        model_args={"depth": 1, "embed_dim": 48},
    )
    folder = tmp_path_factory.mktemp("gpu_check") / "checkpoint"
    preprocessing = Preprocessing(
        image_size=32, crop_pct=0.875, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
    )
    save_checkpoint(folder, model, label_names=LABELS, preprocessing=preprocessing, deit={})
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with a split `test`, 24 photographs in a folder for each class."""
    folder = tmp_path_factory.mktemp("photographs")
    for place in range(24):
        target = folder / "test" / LABELS[place % len(LABELS)]
        target.mkdir(parents=True, exist_ok=True)
        (target / f"{place}.jpeg").write_bytes(encoded(photograph(96, 80, seed=place)))
    return folder


def gpu_check(work: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deit", "benchmark", "gpu-check", "--rehearse", "--work", str(work)]
    command += ["--results", str(work / "results"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def findings(work: Path, step: str) -> list[dict[str, str]]:
    content: dict[str, list[dict[str, str]]] = json.loads((work / f"{step}.json").read_text())
    return content["findings"]


@pytest.fixture(scope="module")
def rehearsal(
    tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, photographs: Path
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder of a check that has run all steps but those of the models, and how it ended."""
    work = tmp_path_factory.mktemp("rehearsal")
    steps = ("host", "products", "export", "engines", "triton", "http", "jpegs")
    arguments = [word for step in steps for word in ("--step", step)]
    return work, gpu_check(work, "--images", str(photographs), "--checkpoint", str(checkpoint), *arguments)


def test_export_engine_triton_and_http_are_rehearsed_and_recorded(
    rehearsal: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    work, done = rehearsal
    assert done.returncode == 0, done.stderr
    assert [finding["verdict"] for finding in findings(work, "export")] == ["passed"]
    assert findings(work, "jpegs")[-1]["verdict"] == "passed"
    records = read(list((work / "results").glob("*.jsonl")))
    assert {record.kind for record in records} == {"machine_limit", "engine", "throughput", "http"}
    assert all((record.value("images_per_s") or record.value("gflop_per_s") or 0) > 0 for record in records)


def test_a_second_call_keeps_what_the_first_one_found(
    rehearsal: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    work, _ = rehearsal
    before = (work / "host.json").read_bytes()
    again = gpu_check(work, "--step", "host")
    assert "earlier" in again.stderr
    assert (work / "host.json").read_bytes() == before


def test_a_step_that_lacks_its_files_says_which_option_gives_them(tmp_path: Path) -> None:
    done = gpu_check(tmp_path, "--step", "export")
    assert done.returncode == 0
    assert findings(tmp_path, "export")[0]["verdict"] == "not possible here"
    assert "--checkpoint" in findings(tmp_path, "export")[0]["text"]


def test_a_step_that_fails_is_named_with_its_reason_and_ends_the_check_with_status_1(
    tmp_path: Path, photographs: Path
) -> None:
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"not a checkpoint")

    done = gpu_check(
        tmp_path,
        *("--step", "export", "--images", str(photographs), "--checkpoint", str(damaged)),
        *("--architecture", "deit_tiny_patch16_224"),
    )

    assert done.returncode == 1
    assert findings(tmp_path, "export")[0]["verdict"] == "failed"
    assert "damaged.pth" in findings(tmp_path, "export")[0]["text"]


@pytest.mark.soak
def test_models_and_training_are_rehearsed(tmp_path: Path, photographs: Path) -> None:
    done = gpu_check(tmp_path, "--images", str(photographs), "--step", "models", "--step", "training")

    assert done.returncode == 0, done.stderr
    resumed = findings(tmp_path, "training")[-1]
    assert resumed["verdict"] == "passed", resumed
