from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from deit.errors import DataError
from deit.preprocessing import resize_and_crop
from export.graph import export_graph
from export.joint import JointClassifier
from export.quantization import quantize
from export.samples import load_samples
from export.served import served_form
from export.transpositions import quantize_before_transposing
from tests.conftest import encoded, photograph
from tests.export.conftest import LABELS
from tests.training.conftest import TINY, tiny_student
from training.images import ParquetImages, decode

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def classifier() -> JointClassifier:
    return JointClassifier(tiny_student(), TINY).eval()


@pytest.fixture(scope="module")
def graph_in_float(classifier: JointClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("graph") / "float.onnx"
    export_graph(served_form(classifier), 16, file)
    return file


@pytest.mark.parametrize(("method", "products"), [("static", 13), ("mixed", 11)])
def test_scales_are_per_output_channel_and_found_on_the_images(
    graph_in_float: Path, tmp_path: Path, method: str, products: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The patches, and two blocks with six products by weights each, one of which reads GELU's output."""
    quantize(graph_in_float, tmp_path / "int8.onnx", IMAGES, method=method)
    assert "pre-processing" not in caplog.text, "advice that the user of deit export cannot follow"
    graph = onnx.load(tmp_path / "int8.onnx").graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    int8 = [
        tensor for tensor in weights.values() if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 2
    ]
    assert len(int8) == products
    scales = {node.input[0]: weights[node.input[1]] for node in graph.node if node.op_type == "DequantizeLinear"}
    for tensor in int8:
        assert list(scales[tensor.name].dims) == [tensor.dims[1]]
    nodes = Counter(node.op_type for node in graph.node)
    assert nodes["LayerNormalization"] == 5
    assert nodes["QuantizeLinear"] <= products  # queries, keys and values share theirs


@pytest.mark.parametrize(("method", "products"), [("static", 13), ("mixed", 11)])
def test_for_gpus_every_zero_point_is_zero(
    classifier: JointClassifier, graph_in_float: Path, tmp_path: Path, method: str, products: int
) -> None:
    """Zero points of activations and weights, which keep a scale for each output channel; the answers stay close."""
    quantize(graph_in_float, tmp_path / "int8.onnx", IMAGES, method=method, symmetric=True)
    graph = onnx.load(tmp_path / "int8.onnx").graph
    assert [node.op_type for node in graph.node if "images" in node.input] == ["Cast"]
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    quantized = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    zero_points = [constants[node.input[2]] for node in quantized]
    assert {zero_point.dtype for zero_point in zero_points} == {np.dtype(np.int8)}
    assert not any(zero_point.any() for zero_point in zero_points)
    weights = [node for node in quantized if constants.get(node.input[0], np.zeros(())).ndim == 2]
    assert len(weights) == products
    for node in weights:
        assert constants[node.input[1]].shape == (constants[node.input[0]].shape[1],)

    session = onnxruntime.InferenceSession(tmp_path / "int8.onnx", providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = classifier(torch.from_numpy(IMAGES))[0].numpy()
    np.testing.assert_allclose(session.run(["probabilities"], {"images": IMAGES})[0], expected, atol=0.02)


def test_quantizing_before_transposing_changes_no_answer(graph_in_float: Path, tmp_path: Path) -> None:
    quantize(graph_in_float, tmp_path / "after.onnx", IMAGES, method="static", symmetric=True)
    graph = onnx.load(tmp_path / "after.onnx")
    quantize_before_transposing(graph)
    onnx.save(graph, tmp_path / "before.onnx")
    bytes_ = {node.output[0] for node in graph.graph.node if node.op_type == "DequantizeLinear"}
    moved = [node for node in graph.graph.node if node.op_type == "Transpose" and node.input[0] in bytes_]
    assert len(moved) == 2  # what each block's attention gathered
    after, before = (
        onnxruntime.InferenceSession(tmp_path / f"{name}.onnx", providers=["CPUExecutionProvider"]).run(
            None, {"images": IMAGES}
        )
        for name in ("after", "before")
    )
    np.testing.assert_array_equal(before, after)


def test_what_calibrates_does_not_judge(colours_data: Path, tmp_path: Path) -> None:
    """A file has no train split, so it keeps a quarter; a data set calibrates on its train split."""
    file = colours_data / "test.parquet"
    judged, calibration, _ = load_samples(file, TINY, None, label_names=LABELS, calibrates=True)
    assert (len(judged.images), len(calibration.images)) == (36, 12)
    seen = {image.tobytes() for image in judged.images}
    assert not seen & {image.tobytes() for image in calibration.images}
    assert len(judged.labels) == 36

    for label in range(2):  # ImageNet V2's folders are test images, and nothing else is there to train on
        for number in range(4):
            (tmp_path / str(label)).mkdir(exist_ok=True)
            picture = encoded(photograph(40, 40, seed=4 * label + number))
            (tmp_path / str(label) / f"{number}.jpeg").write_bytes(picture)
    judged, calibration, _ = load_samples(tmp_path, TINY, None, label_names=("0", "1"), calibrates=True)
    assert calibration is not None
    assert (len(judged.images), len(calibration.images)) == (6, 2)

    judged, calibration, _ = load_samples(colours_data, TINY, None, label_names=LABELS, calibrates=True)
    train = ParquetImages([colours_data / "train.parquet"])
    assert (len(judged.images), len(calibration.images)) == (48, 64)
    assert (calibration.images[0] == resize_and_crop(decode(train, 0), TINY)).all()


def test_training_images_are_compared_on_where_there_are_no_others_and_their_labels_do_not_count(
    tmp_path: Path,
) -> None:
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for number in range(8):
            (tmp_path / label / f"{number}.png").write_bytes(encoded(photograph(20, 20, seed=number), "PNG"))
    judged, calibration, _ = load_samples(tmp_path, TINY, 6, label_names=("cat", "dog"), calibrates=True)
    assert calibration is not None
    assert (len(judged.images), judged.labels, len(calibration.images)) == (6, None, 4)


def test_one_damaged_image_does_not_end_an_export_and_two_do(colours_data: Path, tmp_path: Path) -> None:
    images = ParquetImages([colours_data / "test.parquet"])
    for index in range(8):
        (tmp_path / f"{index}.png").write_bytes(images.encoded(index))
    (tmp_path / "3.png").write_bytes(images.encoded(3)[:100])
    judged, *_ = load_samples(tmp_path, TINY, None, label_names=LABELS, calibrates=False)
    assert len(judged.images) == 7
    (tmp_path / "4.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 8 images are damaged, such as .*4\.png"):
        load_samples(tmp_path, TINY, None, label_names=LABELS, calibrates=False)


def test_labels_of_other_classes_than_the_models_do_not_count(colours_data: Path) -> None:
    judged, calibration, _ = load_samples(
        colours_data, TINY, 5, label_names=tuple(map(str, range(1000))), calibrates=False
    )
    assert judged.labels is None
    assert calibration is None
    assert torch.from_numpy(judged.images).shape == (5, 16, 16, 3)
