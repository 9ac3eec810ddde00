"""int8: products of uint8 or int8 activations and int8 weights, with scales found on real images.

Weights have a scale for each output channel. "static" writes the scales of the activations into the graph as
QuantizeLinear and DequantizeLinear (Q/DQ), which ONNX Runtime, OpenVINO and TensorRT read; "mixed" does so but for the
products that read GELU's output, whose few large values make every step coarse; "dynamic" lets ONNX Runtime compute
the scales for each batch, so that an image's answer depends on its neighbours.

For CPUs activations are uint8 with a zero point, which uses all steps and which their instructions multiply. For GPUs
both sides are int8 around zero: TensorRT accepts no other zero point (https://github.com/NVIDIA/TensorRT/issues/4698).
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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
from export.transpositions import quantize_before_transposing

METHODS = ("static", "mixed", "dynamic")
GPU_METHODS = ("static", "mixed")

BATCH = 16


def quantize(
    onnx_file: Path, target: Path, images: npt.NDArray[np.uint8], *, method: str, symmetric: bool = False
) -> None:
    """Write the int8 form of a float32 graph.

    Args:
        images: to find the ranges of the activations on, uint8 (N, H, W, 3); other images than those of the gate.
        method: one of METHODS, or of GPU_METHODS when `symmetric`.
        symmetric: all zero points are 0, as GPUs require.
    """
    weights = weighted_products(onnx_file, after_gelu=method != "mixed")
    with tempfile.TemporaryDirectory() as scratch, _without_advice():
        source = Path(scratch) / "source.onnx"
        graph = onnx.load(onnx_file)
        # The tools rewrite products and then stumble over the shapes that torch's exporter noted for them.
        del graph.graph.value_info[:]
        onnx.save(graph, source)
        if method == "dynamic":
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
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            # the results go on in float: to LayerNorm, softmax, GELU and the residual stream, which are not quantized
            extra_options={
                "OpTypesToExcludeOutputQuantization": ["MatMul"],
                "ActivationSymmetric": symmetric,
                "WeightSymmetric": True,
            },
        )
        if not symmetric:
            graph = onnx.load(target)
            quantize_before_transposing(graph)
            onnx.save(graph, target)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Silence ONNX Runtime's advice to simplify the graph first, which the export has already done."""

    def keep(record: logging.LogRecord) -> bool:
        return "pre-processing before quantization" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(keep)
    try:
        yield
    finally:
        root.removeFilter(keep)


def weighted_products(onnx_file: Path, *, after_gelu: bool = True) -> list[str]:
    """Names of the products with weights. Attention multiplies activations by activations, which loses more accuracy
    than it saves time, and the heads are less than a hundredth of the work.
    """
    graph = onnx.load(onnx_file, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    gelus = {name for node in graph.node if node.op_type == "Gelu" for name in node.output}
    return [
        node.name
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in constants and (after_gelu or node.input[0] not in gelus)
    ]


class Batches(CalibrationDataReader):  # type: ignore[misc]
    """The images in the form that ONNX Runtime's calibration asks for."""

    def __init__(self, images: npt.NDArray[np.uint8]) -> None:
        self._batches: Iterator[npt.NDArray[np.uint8]] = iter(np.split(images, range(BATCH, len(images), BATCH)))

    def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
        batch = next(self._batches, None)
        return None if batch is None else {IMAGES: batch}
