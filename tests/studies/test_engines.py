import shutil
from pathlib import Path

import numpy as np
import pytest

from deit.errors import BenchmarkError
from studies.engines import open_model
from tests.conftest import REPOSITORY_ROOT

REPOSITORY = REPOSITORY_ROOT / "model_repository"


def test_the_shipped_model_runs_as_often_side_by_side_as_in_triton() -> None:
    model = open_model(REPOSITORY, "deit_cifar10")
    assert len(model.instances) == 2
    (probabilities,) = model.instances[0](np.zeros((3, model.size, model.size, 3), np.uint8))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_a_plan_is_not_measured_on_processors(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "deit_cifar10", tmp_path / "tiny")
    config = tmp_path / "tiny" / "config.pbtxt"
    config.write_text(config.read_text().replace('backend: "onnxruntime"', 'backend: "tensorrt"'))
    with pytest.raises(BenchmarkError, match="runs on tensorrt, which does not run on processors"):
        open_model(tmp_path, "tiny")
