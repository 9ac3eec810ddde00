"""PyTorch to ONNX: one file, dynamic batch, LayerNormalization kept as one node."""

import warnings
from pathlib import Path

import onnx
import torch

from deit.errors import RepositoryError
from deit.model import IMAGES
from export.explained import ExplainedClassifier
from export.joint import JointClassifier
from export.transpositions import transpose_keys_in_two_steps

# From 17 on LayerNormalization is one operator, from 20 on GELU. Taken apart, LayerNormalization overflows in half
# precision, which has ruined many ViTs on TensorRT (https://github.com/NVIDIA/TensorRT/issues/2709), and no engine
# has to recognise GELU in five operators.
OPSET = 20

# From 23 on attention is one operator.
OPSET_FOR_GPU = 23


def export_graph(
    classifier: JointClassifier | ExplainedClassifier, image_size: int, path: Path, *, opset: int = OPSET
) -> None:
    """Write `classifier` to `path` as ONNX.

    Raises:
        RepositoryError: the exporter cannot express the model.
    """
    # The batch of the example is neither 0 nor 1, which the exporter would take for constants.
    example = torch.zeros(2, image_size, image_size, 3, dtype=torch.uint8)
    try:
        with warnings.catch_warnings():
            # torch 2.14 warns about its own use of deprecated internals while it exports; we cannot change that
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                classifier.eval(),
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=[IMAGES],
                output_names=list(classifier.output_names),
                dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise RepositoryError(
            f"torch {torch.__version__} cannot export {type(classifier.model).__name__}: {error}"
        ) from error
    assert program is not None  # with dynamo=True it returns a program
    model = program.model_proto
    _cast_first(model)
    transpose_keys_in_two_steps(model)
    _forget_the_source(model)
    onnx.save(model, path)
    check_graph(path)


def _cast_first(model: onnx.ModelProto) -> None:
    """Make all readers of the uint8 images read the cast images: torch's exporter takes the batch size from the uint8
    input, but TensorRT can only cast uint8 (https://github.com/NVIDIA/TensorRT/issues/3985).
    """
    nodes = model.graph.node
    cast = next((node for node in nodes if node.op_type == "Cast" and list(node.input) == [IMAGES]), None)
    if cast is None:
        return  # which check_graph reports
    for node in nodes:
        if node.op_type == "Shape" and list(node.input) == [IMAGES]:
            node.input[0] = cast.output[0]
    first = onnx.NodeProto()
    first.CopyFrom(cast)
    nodes.remove(cast)
    nodes.insert(0, first)


def _forget_the_source(model: onnx.ModelProto) -> None:
    """Drop torch's metadata: each node has a stack trace with paths of the exporting machine."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]


def check_graph(path: Path) -> None:
    """Raises RepositoryError when the file is not valid ONNX, keeps weights in other files, or does more with the uint8
    images than cast them.
    """
    graph = onnx.load(path, load_external_data=False).graph
    if any(tensor.external_data for tensor in graph.initializer):
        raise RepositoryError(f"{path} keeps weights in other files; a served model must be one file")
    readers = [node.op_type for node in graph.node if IMAGES in node.input]
    if readers != ["Cast"]:
        raise RepositoryError(
            f"{path} reads its uint8 input {IMAGES} in {', '.join(readers) or 'no operator'}, and TensorRT accepts "
            "only one Cast"
        )
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RepositoryError(f"{path} is not valid ONNX: {error}") from error
