"""One int8 matrix product, as ONNX Runtime computes it."""

from collections.abc import Callable

import numpy as np
import onnxruntime
from onnx import TensorProto, helper


def matmul_integer(shape: tuple[int, int, int], threads: int) -> Callable[[], object]:
    """A call that multiplies uint8 (M, K) by int8 (K, N) into int32. The weights are constant, as a model's are."""
    m, k, n = shape
    random = np.random.default_rng(0)
    weights = helper.make_tensor(
        "weights", TensorProto.INT8, (k, n), random.integers(-127, 128, (k, n), dtype=np.int8).tobytes(), raw=True
    )
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["activations", "weights"], ["out"])],
        "product",
        [helper.make_tensor_value_info("activations", TensorProto.UINT8, (m, k))],
        [helper.make_tensor_value_info("out", TensorProto.INT32, (m, n))],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = {"activations": random.integers(0, 256, (m, k), dtype=np.uint8)}
    return lambda: session.run(None, feed)
