from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch

from export.engines import Engine
from export.graph import export_graph
from export.joint import JointClassifier
from export.served import ServedBlock, served_form
from tests.training.conftest import TINY, tiny_student
from training.opening import timm_preprocessing


@pytest.fixture(scope="module")
def classifier() -> JointClassifier:
    torch.manual_seed(0)
    model = tiny_student()
    for parameter in model.parameters():  # timm starts biases and tokens at zero, which would hide a forgotten one
        torch.nn.init.normal_(parameter, std=0.3)
    return JointClassifier(model, TINY).eval()


@pytest.fixture(scope="module")
def graphs(classifier: JointClassifier, tmp_path_factory: pytest.TempPathFactory) -> dict[torch.dtype, Path]:
    folder = tmp_path_factory.mktemp("graphs")
    files = {dtype: folder / f"{dtype}.onnx" for dtype in (torch.float32, torch.float16, torch.bfloat16)}
    for dtype, file in files.items():
        export_graph(served_form(classifier, dtype), 16, file)
    return files


def images(count: int = 6, size: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_the_served_form_is_the_same_function_with_less_work(classifier: JointClassifier) -> None:
    served = served_form(classifier)
    assert served.model.blocks[-1].kept_tokens == 2
    assert not served.normalises
    with torch.inference_mode():
        for ours, theirs in zip(
            served(torch.from_numpy(images())), classifier(torch.from_numpy(images())), strict=True
        ):
            torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_uint8_images_are_cast_once_and_not_read_otherwise(
    graphs: dict[torch.dtype, Path], dtype: torch.dtype
) -> None:
    """The exporter alone would take the batch size from them too."""
    graph = onnx.load(graphs[dtype]).graph
    assert [node.op_type for node in graph.node if "images" in node.input] == ["Cast"]
    assert any(node.op_type == "Shape" for node in graph.node)


def test_a_model_that_reads_every_token_keeps_them_all() -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=2, num_heads=3, global_pool="avg", class_token=False
    ).eval()
    classifier = JointClassifier(model, timm_preprocessing(model))
    served = served_form(classifier)
    assert isinstance(served.model.blocks[-1], ServedBlock)
    assert served.model.blocks[-1].kept_tokens is None
    with torch.inference_mode():
        pixels = torch.from_numpy(images(size=32))
        torch.testing.assert_close(served(pixels)[0], classifier(pixels)[0], atol=2e-6, rtol=0)


def test_the_graph_holds_no_operator_more_than_the_model_needs(graphs: dict[torch.dtype, Path]) -> None:
    """Two blocks with two heads of classes: what a change of torch's exporter would add shows here."""
    nodes = Counter(node.op_type for node in onnx.load(graphs[torch.float32]).graph.node)
    assert nodes["MatMul"] == 1 + 2 * 8  # patches; query, key, value, scores, gathering, projection, two of the MLP
    assert nodes["Gemm"] == 2
    assert (nodes["LayerNormalization"], nodes["Softmax"], nodes["Gelu"], nodes["Conv"]) == (5, 2 + 2, 2, 0)
    assert nodes["Transpose"] == 1 + 2 * 5  # patches; query, key (twice), value and gathered of each block
    assert nodes["Cast"] == 1  # the pixels
    assert nodes["Slice"] == 2  # the last block's tokens, and those that it asks with
    assert nodes["Mul"] + nodes["Div"] <= 1  # the mean of both heads; normalisation and attention's factor are folded
    assert not {"Erf", "ReduceMean", "Pow", "Sqrt", "Split", "Squeeze"} & nodes.keys()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_in_the_graph_but_not_where_a_vit_cannot_bear_it(
    graphs: dict[torch.dtype, Path], dtype: torch.dtype
) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(graphs[dtype]), check_type=True, strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    graph = model.graph
    types = {info.name: info.type.tensor_type.elem_type for info in [*graph.value_info, *graph.output, *graph.input]}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    half = onnx.TensorProto.FLOAT16 if dtype == torch.float16 else onnx.TensorProto.BFLOAT16
    patches = next(node for node in graph.node if node.op_type == "MatMul")
    for node in graph.node:
        kinds = {types[name] for name in node.input if types.get(name) in (half, onnx.TensorProto.FLOAT)}
        if node is patches or node.op_type in ("LayerNormalization", "Softmax", "Gemm"):
            assert kinds == {onnx.TensorProto.FLOAT}, node.name
        elif node.op_type in ("MatMul", "Gelu"):
            assert kinds == {half}, node.name
    assert {output.type.tensor_type.elem_type for output in graph.output} == {onnx.TensorProto.FLOAT}
    casts = sum(node.op_type == "Cast" for node in graph.node)
    assert casts == 1 + 2 * 6  # pixels; two norms, softmax to and fro, two sums with the residual stream in each block


@pytest.mark.parametrize(
    ("dtype", "engine", "tolerance"),
    [
        # The model's weights are ten times larger than a trained one's, which makes rounding show as much.
        (torch.float32, Engine(backend="onnxruntime"), 1e-5),
        (torch.float32, Engine(backend="openvino"), 1e-5),
        (torch.float16, Engine(backend="onnxruntime"), 2e-2),
        (torch.bfloat16, Engine(backend="openvino"), 1e-1),
    ],
)
def test_engines_run_the_graphs_in_any_batch(
    classifier: JointClassifier, graphs: dict[torch.dtype, Path], dtype: torch.dtype, engine: Engine, tolerance: float
) -> None:
    run = engine.load(graphs[dtype], classifier.output_names)
    for batch in (1, 7, 32):
        with torch.inference_mode():
            expected = classifier(torch.from_numpy(images(batch)))
        for ours, theirs in zip(run(images(batch)), expected, strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), atol=tolerance)


SIZES = (
    "deit_tiny_distilled_patch16_224",
    "deit_small_distilled_patch16_224",
    "deit_base_distilled_patch16_224",
    "deit_base_distilled_patch16_384",
)


@pytest.mark.soak
@pytest.mark.parametrize("architecture", SIZES)
def test_parity_holds_for_every_deit_in_batches_of_1_7_and_32(architecture: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=1000).eval()
    for head in (model.head, model.head_dist):
        torch.nn.init.normal_(head.weight, std=0.2)  # timm starts heads near zero, where any answer is alike
    classifier = JointClassifier(model, timm_preprocessing(model)).eval()
    size = classifier.model.patch_embed.img_size[0]
    export_graph(served_form(classifier), size, tmp_path / "model.onnx")
    run = Engine(backend="onnxruntime").load(tmp_path / "model.onnx", classifier.output_names)
    for batch in (1, 7, 32):
        pixels = images(batch, size)
        with torch.inference_mode():
            expected = [output.numpy() for output in classifier(torch.from_numpy(pixels))]
        for ours, theirs in zip(run(pixels), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
