"""A TensorRT plan of a typed graph, on TensorRT 10 and 11, through the Python API or the same `trtexec` line.

Precision is in the graph: TensorRT 11 has no precision flags any more, and on 10 the network is built strongly typed,
so that a plan never runs in another precision than the graph says
(https://docs.nvidia.com/deeplearning/tensorrt/latest/api/migration/tensorrt-10x-to-11x.html). A plan runs on the
TensorRT and the GPU that built it, so it is built where it is served, and its fingerprint says by whom and from what.
"""

import hashlib
import importlib
import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from deit.durable import replacement, write_file
from deit.errors import RepositoryError
from deit.installation import how_to_install
from deit.model import IMAGES
from deit.repository.layout import FINGERPRINT_FILE

SUPPORTED = (10, 11)
WORKSPACE_MIB = 2048

# What a plan must compute in, by the precision of its graph, as TensorRT's engine inspector names types.
INSPECTED = {"fp32": "Float", "fp16": "Half", "bf16": "BFloat16", "int8": "Int8"}
# The same as ONNX numbers them, in the graph.
TYPED = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16, "int8": onnx.TensorProto.INT8}


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Batch sizes that a plan is built for: the smallest, the one it is tuned for, the largest."""

    smallest: int = 1
    tuned: int = 8
    largest: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.smallest <= self.tuned <= self.largest:
            raise ValueError(f"a profile of batches {self.smallest}, {self.tuned}, {self.largest}: must not fall")


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What a plan is bound to. A plan with another fingerprint than the one expected is built again."""

    tensorrt: str
    gpu: str
    compute_capability: str
    onnx_sha256: str
    precision: str
    profile: tuple[int, int, int]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"


def trtexec_line(onnx_file: Path, plan: Path, *, image_size: int, profile: Profile, timing_cache: Path) -> str:
    """The shell line that builds the same plan with NVIDIA's tool, in the image that will serve it.

    `--stronglyTyped` is what 10 needs and 11 accepts without effect; neither gets a precision flag, which 11 refuses.
    TF32, which is on by default, would give float32 products the precision of float16.
    """
    shape = f"x{image_size}x{image_size}x3"
    arguments = [
        "trtexec",
        f"--onnx={onnx_file}",
        f"--saveEngine={plan}",
        "--stronglyTyped",
        "--noTF32",
        f"--minShapes={IMAGES}:{profile.smallest}{shape}",
        f"--optShapes={IMAGES}:{profile.tuned}{shape}",
        f"--maxShapes={IMAGES}:{profile.largest}{shape}",
        f"--memPoolSize=workspace:{WORKSPACE_MIB}",
        f"--timingCacheFile={timing_cache}",
        "--skipInference",
    ]
    return shlex.join(arguments)


def refuse_other_precision(onnx_file: Path, precision: str) -> None:
    """Raises RepositoryError when the graph is not typed in the precision: TensorRT would build what it reads."""
    graph = onnx.load(onnx_file, load_external_data=False).graph
    types = {tensor.data_type for tensor in graph.initializer}
    lower = {name for name, number in TYPED.items() if number in types}
    if lower != ({precision} - {"fp32"}):
        raise RepositoryError(
            f"{onnx_file} computes in {', '.join(sorted(lower)) or 'fp32'}, and {precision} was asked for: export the "
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


def fingerprint(tensorrt: Any, onnx_file: Path, *, precision: str, profile: Profile) -> Fingerprint:
    """Of the plan that would be built here. Raises RepositoryError without a GPU."""
    import torch

    if not torch.cuda.is_available():
        raise RepositoryError("a plan is built on the GPU that it will run on, and PyTorch finds none here")
    capability = torch.cuda.get_device_capability()
    return Fingerprint(
        tensorrt=str(tensorrt.__version__),
        gpu=torch.cuda.get_device_name(),
        compute_capability=f"{capability[0]}.{capability[1]}",
        onnx_sha256=hashlib.sha256(onnx_file.read_bytes()).hexdigest(),
        precision=precision,
        profile=(profile.smallest, profile.tuned, profile.largest),
    )


def is_current(plan: Path, expected: Fingerprint) -> bool:
    """Whether the plan is there and was built from this graph by this TensorRT for this GPU."""
    try:
        return plan.is_file() and (plan.parent / FINGERPRINT_FILE).read_text() == expected.to_json()
    except OSError:
        return False


def build_plan(onnx_file: Path, plan: Path, *, precision: str, profile: Profile, cache: Path) -> bool:
    """Write the plan and its fingerprint, unless they are there already; returns whether it was built.

    Raises:
        RepositoryError: no TensorRT or GPU, the graph is not in the precision, TensorRT cannot build it, or what it
            built computes in another precision.
    """
    refuse_other_precision(onnx_file, precision)
    tensorrt = load_tensorrt()
    expected = fingerprint(tensorrt, onnx_file, precision=precision, profile=profile)
    if is_current(plan, expected):
        return False
    serialized, report = _build(tensorrt, onnx_file, profile=profile, cache=cache)
    check_inspection(report, precision)
    with replacement(plan) as temporary:
        temporary.write_bytes(serialized)
    write_file(plan.parent / FINGERPRINT_FILE, expected.to_json())
    return True


def _build(tensorrt: Any, onnx_file: Path, *, profile: Profile, cache: Path) -> tuple[bytes, str]:
    """The plan, and what TensorRT's inspector says of its layers."""
    logger = tensorrt.Logger(tensorrt.Logger.WARNING)
    builder = tensorrt.Builder(logger)
    # needed on 10; 11 knows no other kind of network and ignores it
    network = builder.create_network(1 << int(tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = tensorrt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_file)):
        errors = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise RepositoryError(f"TensorRT {tensorrt.__version__} cannot read {onnx_file}: {errors}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(tensorrt.MemoryPoolType.WORKSPACE, WORKSPACE_MIB * 2**20)
    config.clear_flag(tensorrt.BuilderFlag.TF32)  # on by default, with which fp32 has the precision of fp16
    config.profiling_verbosity = tensorrt.ProfilingVerbosity.DETAILED  # the inspector tells types only then
    timings = config.create_timing_cache(cache.read_bytes() if cache.is_file() else b"")
    config.set_timing_cache(timings, ignore_mismatch=False)
    _, height, width, channels = network.get_input(0).shape
    shapes = [(batch, height, width, channels) for batch in (profile.smallest, profile.tuned, profile.largest)]
    optimization = builder.create_optimization_profile()
    optimization.set_shape(IMAGES, *shapes)
    config.add_optimization_profile(optimization)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise RepositoryError(f"TensorRT {tensorrt.__version__} cannot build {onnx_file}; its log above says why")
    write_file(cache, bytes(timings.serialize()))
    engine = tensorrt.Runtime(logger).deserialize_cuda_engine(serialized)
    inspector = engine.create_engine_inspector()
    return bytes(serialized), str(inspector.get_engine_information(tensorrt.LayerInformationFormat.JSON))


def check_inspection(report: str, precision: str) -> None:
    """Raises RepositoryError when no layer of the built plan computes in the precision that was asked for.

    A plan that is silently float32 answers well and is half as fast: https://github.com/roboflow/rf-detr/issues/1453.

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
    import torch

    load_tensorrt()
    if not torch.cuda.is_available():
        raise RepositoryError("a plan is built on the GPU that it will run on, and PyTorch finds none here")
