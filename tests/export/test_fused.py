"""The graph for GPUs gives the same answers, on the processors that can run it."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch

from export.engines import Engine
from export.graph import OPSET_FOR_GPU, export_graph
from export.joint import JointClassifier
from export.served import served_form
from training.opening import timm_preprocessing

DISTILLED, ALONE = "deit_tiny_distilled_patch16_224", "deit_tiny_patch16_224"


def classifier_of(architecture: str) -> JointClassifier:
    """Two blocks of two heads, with 2 tokens that the heads read or 1."""
    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=5, img_size=32, embed_dim=32, depth=2, num_heads=2).eval()
    for parameter in model.parameters():  # timm starts biases and tokens at zero, which would hide a forgotten one
        torch.nn.init.normal_(parameter, std=0.2)
    return JointClassifier(model, timm_preprocessing(model)).eval()


@pytest.mark.parametrize(
    ("architecture", "dtype", "engine", "tolerance"),
    [
        (DISTILLED, torch.float32, "onnxruntime", 1e-5),
        (ALONE, torch.float16, "onnxruntime", 2e-2),
        (DISTILLED, torch.bfloat16, "openvino", 1e-1),
    ],
)
def test_attention_as_one_operator_is_the_same_function_in_any_batch(
    tmp_path: Path, architecture: str, dtype: torch.dtype, engine: str, tolerance: float
) -> None:
    classifier = classifier_of(architecture)
    file = tmp_path / "model.onnx"
    export_graph(served_form(classifier, dtype, for_gpu=True), 32, file, opset=OPSET_FOR_GPU)
    nodes = Counter(node.op_type for node in onnx.load(file).graph.node)
    assert (nodes["Attention"], nodes["Split"], nodes["MatMul"]) == (2, 2, 1 + 2 * 4)
    assert nodes["Transpose"] == 1  # the patches
    assert not {"Squeeze", "Unsqueeze"} & nodes.keys()

    run = Engine(backend=engine).load(file, classifier.output_names)
    for batch in (1, 7, 32):
        images = np.random.default_rng(batch).integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8)
        with torch.inference_mode():
            expected = classifier(torch.from_numpy(images))
        for ours, theirs in zip(run(images), expected, strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), atol=tolerance)
