"""The graph that resizes for Triton's model decode_jpegs: an image and two matrices in, the model's pixels out.

In the repository as serving/embedded/resize.onnx, because a server has no package that writes ONNX:

    python -m export.resize_graph serving/embedded/resize.onnx
"""

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

ROWS_AND_COLUMNS = [1, 0, 2]
"""They change places."""

CONSTANTS = {
    "half": np.float32(0.5),
    "black": np.float32(0),
    "white": np.float32(255),
    "as_matrix": np.array([0, -1]),
    "as_pixels": np.array([0, -1, 3]),
}


def resize_graph() -> onnx.ModelProto:
    """Inputs: `picture` uint8 (H, W, 3) as stored, and of `ResizeMatrices` (deit/resize_matrices.py) all but the last.

    Output: `pixels` uint8 (image_size, image_size, 3). The factors are wide, all rows or all columns at once, which
    engines multiply fast.
    """
    tensor = helper.make_tensor_value_info
    nodes = [
        _turned_unless("first_goes_down", "picture", "levels"),
        helper.make_node("Cast", ["levels"], ["values"], to=TensorProto.FLOAT),
        *_product("first", "values", "halfway"),
        helper.make_node("Transpose", ["halfway"], ["others"], perm=ROWS_AND_COLUMNS),
        *_product("second", "others", "resized"),
        helper.make_node("Cast", ["resized"], ["pixels"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "resize",
        [
            tensor("picture", TensorProto.UINT8, ["height", "width", 3]),
            tensor("first", TensorProto.FLOAT, ["size", "n"]),
            tensor("second", TensorProto.FLOAT, ["size", "m"]),
            tensor("first_goes_down", TensorProto.BOOL, []),
        ],
        [tensor("pixels", TensorProto.UINT8, ["size", "size", 3])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in CONSTANTS.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def _product(matrix: str, pixels: str, result: str) -> list[NodeProto]:
    """`matrix` x `pixels` (N, M, 3) along N, rounded to whole levels as Pillow does."""
    names = [f"{result}_{step}" for step in ("factor", "exact", "raised", "whole", "levels")]
    factor, exact, raised, whole, levels = names
    return [
        helper.make_node("Reshape", [pixels, "as_matrix"], [factor]),
        helper.make_node("MatMul", [matrix, factor], [exact]),
        helper.make_node("Add", [exact, "half"], [raised]),
        helper.make_node("Floor", [raised], [whole]),
        helper.make_node("Clip", [whole, "black", "white"], [levels]),
        helper.make_node("Reshape", [levels, "as_pixels"], [result]),
    ]


def _turned_unless(condition: str, picture: str, result: str) -> NodeProto:
    """The image, transposed or unchanged."""

    def branch(node: NodeProto) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(node.output[0], TensorProto.UINT8, None)
        return helper.make_graph([node], node.output[0], [], [output])

    return helper.make_node(
        "If",
        [condition],
        [result],
        then_branch=branch(helper.make_node("Identity", [picture], ["as_stored"])),
        else_branch=branch(helper.make_node("Transpose", [picture], ["turned"], perm=ROWS_AND_COLUMNS)),
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(resize_graph().SerializeToString(deterministic=True))
