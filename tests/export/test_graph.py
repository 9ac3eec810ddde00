from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from deit.errors import RepositoryError
from export.graph import check_graph, export_graph
from export.joint import JointClassifier
from tests.training.conftest import TINY, tiny_student


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    export_graph(JointClassifier(tiny_student(), TINY), 16, path)
    return path


def test_inputs_and_outputs_are_the_contracts(onnx_file: Path) -> None:
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", ["batch", 16, 16, 3])
    assert [(output.name, output.type, output.shape[1]) for output in session.get_outputs()] == [
        ("probabilities", "tensor(float)", 3),
        ("class_probabilities", "tensor(float)", 3),
        ("distillation_probabilities", "tensor(float)", 3),
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 7, 33])
def test_any_batch_size_runs(onnx_file: Path, batch_size: int) -> None:
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(["probabilities"], {"images": np.zeros((batch_size, 16, 16, 3), np.uint8)})
    assert probabilities.shape == (batch_size, 3)


def test_layer_normalisation_stays_one_operator(onnx_file: Path) -> None:
    graph = onnx.load(onnx_file)
    operators = [node.op_type for node in graph.graph.node]
    assert operators.count("LayerNormalization") == 5  # two in each of two blocks and the last one
    assert "ReduceMean" not in operators
    assert graph.opset_import[0].version >= 17


def test_a_graph_that_does_more_with_uint8_than_cast_it_is_refused(onnx_file: Path, tmp_path: Path) -> None:
    model = onnx.load(onnx_file)
    model.graph.node.append(onnx.helper.make_node("Shape", ["images"], ["again"]))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(RepositoryError, match="reads its uint8 input images in Cast, Shape"):
        check_graph(tmp_path / "model.onnx")


def test_the_graph_is_one_file(onnx_file: Path) -> None:
    assert [entry.name for entry in onnx_file.parent.iterdir()] == ["model.onnx"]


def test_the_graph_does_not_say_where_it_was_exported(onnx_file: Path) -> None:
    assert str(Path(__file__).parents[2]).encode() not in onnx_file.read_bytes()
    assert b"stack_trace" not in onnx_file.read_bytes()


def test_weights_in_another_file_are_refused(onnx_file: Path, tmp_path: Path) -> None:
    outside = tmp_path / "model.onnx"
    onnx.save(onnx.load(onnx_file), outside, save_as_external_data=True, location="weights.bin", size_threshold=0)
    with pytest.raises(RepositoryError, match="keeps weights in other files"):
        check_graph(outside)


def test_a_damaged_graph_is_refused(onnx_file: Path, tmp_path: Path) -> None:
    damaged = onnx.load(onnx_file)
    del damaged.graph.initializer[0]
    onnx.save(damaged, tmp_path / "model.onnx")
    with pytest.raises(RepositoryError, match="is not valid ONNX"):
        check_graph(tmp_path / "model.onnx")
