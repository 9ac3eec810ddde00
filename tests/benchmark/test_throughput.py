import subprocess
import sys

import pytest
import timm
import torch

from benchmark.eager import eager_rate, pytorch_model
from benchmark.perf_analyzer import PerfAnalyzerRun
from benchmark.throughput import figures_of
from benchmark.triton_statistics import Statistics
from deit.errors import CheckpointError
from tests.conftest import REPOSITORY_ROOT


def test_an_unknown_model_is_named():
    with pytest.raises(CheckpointError, match="--pytorch resnet5: there is no such file or folder"):
        pytorch_model("resnet5")


def test_the_papers_way_times_a_whole_batch_and_tells_the_spread():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    batch_size, rate = eager_rate(model, 32, torch.device("cpu"), runs=3)
    assert (batch_size, rate.runs) == (64, 3)
    assert 0 < rate.lowest <= rate.value <= rate.highest


def counted(images: int, executions: int) -> Statistics:
    return Statistics(images, executions, images, {"queue": 0.5, "compute_infer": 1.0})


def cell(images_per_s: float) -> PerfAnalyzerRun:
    return PerfAnalyzerRun(images_per_s=images_per_s, p50_ms=8.0, p95_ms=9.0, p99_ms=9.5)


def test_a_cell_tells_the_median_of_its_stable_rounds_and_how_full_batches_were():
    rounds = [(cell(100), counted(400, 100)), (None, counted(0, 0)), (cell(120), counted(400, 200))]
    figures, failure = figures_of(rounds)
    assert failure is None
    rate = figures["images_per_s"]
    assert (rate.value, rate.lowest, rate.highest, rate.runs) == (110, 100, 120, 2)
    assert figures["mean_batch"].value == 3
    assert figures["triton_queue_ms"].value == pytest.approx(1000 * 0.5 / 400)


def test_a_cell_that_was_never_stable_says_so():
    figures, failure = figures_of([(None, counted(0, 0))])
    assert figures == {}
    assert failure is not None
    assert failure.startswith("unstable")


def test_asking_triton_alone_needs_no_torch():
    """The image of the compose service has none."""
    code = (
        "import sys, benchmark.throughput; sys.exit(', '.join({'torch', 'timm', 'training'} & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY_ROOT, check=True)
