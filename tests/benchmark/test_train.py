import json
from pathlib import Path

import pytest

from benchmark.command import app
from tests.training.test_images import image_folder


def test_loader_and_step_are_measured_next_to_timms(tmp_path: Path) -> None:
    data, output = image_folder(tmp_path / "data"), tmp_path / "results" / "train.jsonl"
    small = ("--rounds", "2", "--loader-images", "64", "--batch-size", "2", "--steps", "1", "--precision", "fp32")
    app(["train", "--images", str(data), *small, "--output", str(output)], standalone_mode=False)
    figures = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(figure["what"], figure["whose"]) for figure in figures] == [
        *(("loader", whose) for whose in ("here", "timm")),
        *(("training step", whose) for whose in ("here", "timm")),
    ]
    for figure in figures:
        assert len(figure["turns"]) == 2
        assert 0 < min(figure["turns"]) <= figure["images_per_s"] <= max(figure["turns"])
        assert figure["environment"]["cores"] >= 1
    assert sorted(tmp_path.iterdir()) == [data, output.parent]  # and no run is left behind


@pytest.mark.soak
def test_the_loader_is_as_fast_as_timms(shared_data: Path, tmp_path: Path) -> None:
    photographs, output = shared_data / "imagenet" / "sample500.parquet", tmp_path / "train.jsonl"
    app(
        ["train", "--images", str(photographs), "--steps", "0", "--rounds", "7", "--output", str(output)],
        standalone_mode=False,
    )
    ours, timms = (json.loads(line)["images_per_s"] for line in output.read_text().splitlines())
    # both do the same to the same files; 2,000 images draw crops and operations whose cost differs by about 1 %
    assert ours >= 0.98 * timms
