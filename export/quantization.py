"""int8: products of uint8 activations and int8 weights, with scales found on real images.

Weights have a scale for each output channel. "static" writes the scales of the activations into the graph as
QuantizeLinear and DequantizeLinear (Q/DQ), which ONNX Runtime, OpenVINO and TensorRT read; "dynamic" lets ONNX Runtime
find them anew for each batch, so that an image's answer depends on its neighbours.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from deit.model import IMAGES

BATCH = 16


def quantize(onnx_file: Path, target: Path, images: npt.NDArray[np.uint8], *, static: bool) -> None:
    """Write the int8 form of a float32 graph.

    Args:
        images: to find the ranges of the activations on, uint8 (N, H, W, 3); other images than those of the gate.
        static: Q/DQ; else dynamic.
    """
    weights = weighted_products(onnx_file)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source.onnx"
        graph = onnx.load(onnx_file)
        # The tools rewrite products and then stumble over the shapes that torch's exporter noted for them.
        del graph.graph.value_info[:]
        onnx.save(graph, source)
        if not static:
            quantize_dynamic(source, target, nodes_to_quantize=weights, per_channel=True, weight_type=QuantType.QInt8)
            return
        quantize_static(
            source,
            target,
            Batches(images),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=weights,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            # Ranges averaged over the batches: with the extremes of all, one outlier makes every step coarse.
            extra_options={"CalibMovingAverage": True, "CalibMovingAverageConstant": 0.1},
        )


def weighted_products(onnx_file: Path) -> list[str]:
    """Names of the products by weights. Attention multiplies activations by activations, which loses more than it
    saves, and the heads and the patch embedding are 2 % of the work.
    """
    graph = onnx.load(onnx_file, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    return [node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] in constants]


class Batches(CalibrationDataReader):  # type: ignore[misc]
    """The images in the form that ONNX Runtime's calibration asks for."""

    def __init__(self, images: npt.NDArray[np.uint8]) -> None:
        self._batches: Iterator[npt.NDArray[np.uint8]] = iter(np.split(images, range(BATCH, len(images), BATCH)))

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {IMAGES: batch}
