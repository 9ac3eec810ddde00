"""A TensorRT plan of a typed graph, through the Python API of TensorRT 10 and 11; deploy/gpu builds it with trtexec."""

import importlib
from pathlib import Path
from typing import Any

import onnx

from deit.durable import write_file
from deit.errors import RepositoryError
from deit.installation import how_to_install
from deit.model import IMAGES
from deit.tensorrt_plan import (
    FINGERPRINT_FILE,
    WORKSPACE_MIB,
    Fingerprint,
    Machine,
    Profile,
    fingerprint,
    gpu_kinds,
    is_current,
    release_of,
)

SUPPORTED = (10, 11)

# What a plan must compute in, by the precision of its graph, as TensorRT's engine inspector names types.
INSPECTED = {"fp32": "Float", "fp16": "Half", "bf16": "BFloat16", "int8": "Int8"}
# The same as ONNX numbers them, in the graph.
TYPED = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16, "int8": onnx.TensorProto.INT8}


def refuse_other_precision(onnx_file: Path, precision: str) -> None:
    """Raises RepositoryError when the graph is not typed in the precision: TensorRT builds in the graph's types."""
    graph = onnx.load(onnx_file, load_external_data=False).graph
    types = {tensor.data_type for tensor in graph.initializer}
    lower = {name for name, number in TYPED.items() if number in types}
    if lower != ({precision} - {"fp32"}):
        raise RepositoryError(
            f"{onnx_file} computes in {', '.join(sorted(lower)) or 'fp32'}, and {precision} was requested: export the "
            f"graph with --precision {precision}"
        )


def load_tensorrt() -> Any:
    """The module tensorrt. Raises RepositoryError that says what is missing."""
    try:
        tensorrt = importlib.import_module("tensorrt")
    except ImportError as error:
        raise RepositoryError(
            f"a plan needs TensorRT and a GPU, and TensorRT cannot be imported here ({error}); on the machine that "
            f"will serve, run the trtexec line of docs/export.md, or {how_to_install('gpu')}"
        ) from error
    major = int(tensorrt.__version__.partition(".")[0])
    if major not in SUPPORTED:
        raise RepositoryError(
            f"TensorRT {tensorrt.__version__} is installed; plans are built with {' and '.join(map(str, SUPPORTED))}"
        )
    return tensorrt


def this_machine(tensorrt: Any) -> Machine:
    """Raises RepositoryError without a GPU."""
    import torch

    if not torch.cuda.is_available() or not (gpus := gpu_kinds()):
        raise RepositoryError(
            "a plan is built on the GPU that it will run on, and PyTorch finds none here: see what nvidia-smi says"
        )
    return Machine(tensorrt=release_of(tensorrt.__version__), gpus=gpus)


def build_plan(onnx_file: Path, plan: Path, *, precision: str, profiles: tuple[Profile, ...], cache: Path) -> bool:
    """Write the plan and its fingerprint, unless they are there already; returns whether it was built.

    Raises:
        RepositoryError: no TensorRT or GPU, the graph is not in the precision, TensorRT cannot build it, or what it
            built computes in another precision.
    """
    refuse_other_precision(onnx_file, precision)
    tensorrt = load_tensorrt()
    expected = fingerprint(this_machine(tensorrt), onnx_file, profiles)
    if is_current(plan, expected):
        return False
    serialized, report = _build(tensorrt, onnx_file, profiles=profiles, cache=cache)
    check_inspection(report, precision)
    write_plan(plan, serialized, expected)
    return True


def write_plan(plan: Path, serialized: bytes, built: Fingerprint) -> None:
    """Write the plan, then its fingerprint; a plan without a fingerprint is built again."""
    write_file(plan, serialized)
    write_file(plan.parent / FINGERPRINT_FILE, built.to_json())


def _build(tensorrt: Any, onnx_file: Path, *, profiles: tuple[Profile, ...], cache: Path) -> tuple[bytes, str]:
    """The plan, and the report of TensorRT's inspector on its layers."""
    logger = tensorrt.Logger(tensorrt.Logger.WARNING)
    builder = tensorrt.Builder(logger)
    network, _parser = read_network(tensorrt, builder, logger, onnx_file)
    config = builder_config(tensorrt, builder, network, profiles)
    timings = config.create_timing_cache(cache.read_bytes() if cache.is_file() else b"")
    config.set_timing_cache(timings, ignore_mismatch=False)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise RepositoryError(f"TensorRT {tensorrt.__version__} cannot build {onnx_file}; its log above says why")
    write_file(cache, bytes(timings.serialize()))
    engine = tensorrt.Runtime(logger).deserialize_cuda_engine(serialized)
    inspector = engine.create_engine_inspector()
    return bytes(serialized), str(inspector.get_engine_information(tensorrt.LayerInformationFormat.JSON))


def read_network(tensorrt: Any, builder: Any, logger: Any, onnx_file: Path) -> tuple[Any, Any]:
    """The graph as TensorRT reads it, and the parser, which owns the graph's weights and must live as long.

    Raises:
        RepositoryError: TensorRT does not accept a part of the graph, which the message names.
    """
    # needed on 10; 11 knows no other kind of network and ignores it
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_file)):
        errors = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise RepositoryError(f"{tensorrt.__name__} {tensorrt.__version__} cannot read {onnx_file}: {errors}")
    return network, parser


def builder_config(tensorrt: Any, builder: Any, network: Any, profiles: tuple[Profile, ...]) -> Any:
    """How a plan is built, by TensorRT or TensorRT-RTX."""
    config = builder.create_builder_config()
    config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, WORKSPACE_MIB * 2**20)
    config.clear_flag(tensorrt.BuilderFlag.TF32)  # on by default, with which fp32 has the precision of fp16
    config.profiling_verbosity = tensorrt.ProfilingVerbosity.DETAILED  # the inspector shows types only then
    _, height, width, channels = network.get_input(0).shape
    for profile in profiles:
        optimization = builder.create_optimization_profile()
        shapes = [(batch, height, width, channels) for batch in (profile.smallest, profile.tuned, profile.largest)]
        optimization.set_shape(IMAGES, *shapes)
        config.add_optimization_profile(optimization)
    return config


def check_inspection(report: str, precision: str) -> None:
    """Raises RepositoryError if no layer of the built plan computes in the requested precision.

    A plan that is silently float32 gives correct results at half the speed:
    https://github.com/roboflow/rf-detr/issues/1453.

    Args:
        report: the engine inspector's JSON.
    """
    if INSPECTED[precision] not in report:
        raise RepositoryError(
            f"TensorRT built a plan without a {precision} layer ({INSPECTED[precision]} is in none of their types), so "
            "it is not published; this GPU may not have that precision"
        )


def refuse_without_gpu() -> None:
    """Raises RepositoryError before anything is exported, when no plan can be built here."""
    this_machine(load_tensorrt())
