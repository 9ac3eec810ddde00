from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from benchmark.engines import open_model, operations
from deit.errors import BenchmarkError
from tests.conftest import REPOSITORY_ROOT

REPOSITORY = REPOSITORY_ROOT / "model_repository"


def test_operations_count_the_products_of_one_image(tmp_path: Path) -> None:
    """A convolution of 3 to 5 channels with 2 x 2 kernels on 4 x 4 pixels, then a product of 20 by 7."""
    random = np.random.default_rng(0)
    weights = {"kernel": (5, 3, 2, 2), "weight": (20, 7)}
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["pixels", "kernel"], ["maps"], strides=[2, 2]),
            helper.make_node("Flatten", ["maps"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["out"]),
        ],
        "g",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ("batch", 3, 4, 4))],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ("batch", 7))],
        [onnx.numpy_helper.from_array(random.random(shape, np.float32), name) for name, shape in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "model.onnx")
    assert operations(tmp_path / "model.onnx") == 2 * (5 * 2 * 2) * (3 * 2 * 2) + 2 * 20 * 7


def test_the_shipped_model_runs_as_often_side_by_side_as_in_triton() -> None:
    model = open_model(REPOSITORY, "deit_cifar10")
    assert len(model.instances) == 2
    # DeiT, width 192, patch 4 at 32 px: about 12 width^2 operations a token and block and as many multiplications
    assert 1e8 < model.operations < 2e9
    (probabilities,) = model.instances[0](np.zeros((3, model.size, model.size, 3), np.uint8))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)


def test_a_plan_is_not_measured_on_processors(tmp_path: Path) -> None:
    (tmp_path / "tiny" / "1").mkdir(parents=True)
    (tmp_path / "tiny" / "config.pbtxt").write_text('backend: "tensorrt"\n')
    with pytest.raises(BenchmarkError, match="runs on tensorrt, which does not run on processors"):
        open_model(tmp_path, "tiny")
