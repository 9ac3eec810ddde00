"""One matrix product, as ONNX Runtime computes it."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnxruntime
from onnx import TensorProto, helper, numpy_helper


def onnx_product(precision: str, shape: tuple[int, int, int], threads: int) -> tuple[str, Callable[[], object]]:
    """The operator for fp32 or int8, and a call that multiplies (M, K) by (K, N).

    The weights are constant, as a model's are.
    """
    m, k, n = shape
    random = np.random.default_rng(0)
    left: npt.NDArray[np.generic]
    right: npt.NDArray[np.generic]
    if precision == "int8":
        operator, result = "MatMulInteger", TensorProto.INT32
        left, right = random.integers(0, 256, (m, k), np.uint8), random.integers(-127, 128, (k, n), np.int8)
    else:
        operator, result = "MatMul", TensorProto.FLOAT
        left, right = random.random((m, k), np.float32), random.random((k, n), np.float32)
    graph = helper.make_graph(
        [helper.make_node(operator, ["activations", "weights"], ["out"])],
        "product",
        [helper.make_tensor_value_info("activations", helper.np_dtype_to_tensor_dtype(left.dtype), left.shape)],
        [helper.make_tensor_value_info("out", result, (m, n))],
        [numpy_helper.from_array(right, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return operator, lambda: session.run(None, {"activations": left})
