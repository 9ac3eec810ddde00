"""`deit benchmark accuracy`: four ways to ask the model that ships, on a data set of pictures."""

import html
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmark.accuracy import disagreement, hits
from benchmark.results import read
from tests.conftest import REPOSITORY_ROOT, encoded, photograph, write_parquet

NAMES = (REPOSITORY_ROOT / "model_repository" / "deit_cifar10" / "labels.txt").read_text().splitlines()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """40 pictures, which the model that ships has never seen anything like, one of them torn."""
    images = [encoded(photograph(64, 48, seed), "PNG") for seed in range(40)]
    images[7] = images[7][:60]
    file = tmp_path / "pictures.parquet"
    write_parquet(file, images, [seed % 10 for seed in range(40)], tuple(NAMES))
    return file


def test_every_way_of_asking_gives_the_same_answers_and_the_page_shows_the_wrong_ones(pictures, tmp_path):
    command = [
        *(sys.executable, "-m", "deit", "benchmark", "accuracy", "--serve", "model_repository"),
        *("--model", "deit_cifar10", "--variant", "deit_cifar10", "--data", pictures),
        *("--page", tmp_path / "wrong.html", "--results", tmp_path / "results"),
    ]
    done = subprocess.run(command, cwd=REPOSITORY_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    records = read(list((tmp_path / "results").glob("*.jsonl")))
    assert [record.conditions["way"] for record in records] == ["onnx", "triton", "http"] * 2
    for record in records:
        assert record.conditions["count"] == 39  # the torn one is left out
        assert record.value("top1") == records[0].value("top1")
        assert record.value("disagreement") == 0
        # other batch sizes and threads move the last bits
        assert record.value("max_difference") < 1e-5
    page = (tmp_path / "wrong.html").read_text()
    wrong = round(39 * (1 - records[0].value("top1")))
    assert page.count("<figure>") == wrong > 0
    assert f"deit_cifar10: {wrong} wrong answers to 39 images" in html.unescape(page)
    assert len(re.findall(r'src="data:image/jpeg;base64,[\w+/=]+"', page)) == wrong


def test_top_1_and_top_5_count_images_that_have_a_true_class():
    probabilities = np.eye(8, dtype=np.float32)[[0, 1, 2]] + np.linspace(0.1, 0, 8, dtype=np.float32)
    truth = np.zeros((3, 8), bool)
    truth[0, 0] = truth[1, 4] = True  # the third has none, as some of ReaL's
    figures = hits(probabilities, truth)
    assert figures["top1"].value == 0.5
    assert figures["top5"].value == 1.0
    truth[1] = np.eye(8, dtype=bool)[7]
    assert hits(probabilities, truth)["top5"].value == 0.5


def test_disagreement_counts_images_that_are_decided_differently():
    left = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]], np.float32)
    right = np.array([[0.8, 0.2], [0.6, 0.4], [0.9, 0.1], [0.7, 0.3]], np.float32)
    assert disagreement(left, right) == 0.25
