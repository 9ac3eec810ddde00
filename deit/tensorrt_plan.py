"""Build settings and fingerprint of a TensorRT plan, for `deit export` and for deploy/gpu in NVIDIA's image.

A plan runs only with the TensorRT release and on the kind of GPU that built it. So it is built where it is served, and
its fingerprint records both, and the graph. Standard library only: NVIDIA's image gets a copy of just this file.

Precision is in the graph: TensorRT 11 has no precision flags any more, and on 10 the network is built strongly typed,
so that a plan never runs in another precision than the graph says
(https://docs.nvidia.com/deeplearning/tensorrt/latest/api/migration/tensorrt-10x-to-11x.html).
"""

import hashlib
import json
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

PLAN_FILE = "model.plan"

FINGERPRINT_FILE = "fingerprint.json"
"""Next to a plan: the TensorRT release, GPU, graph and batch sizes that it was built with and for."""

WORKSPACE_MIB = 2048
SMALL_BATCH = 8


@dataclass(frozen=True)
class Profile:
    """Batch sizes that a plan is built for: the smallest, the one it is tuned for, the largest."""

    smallest: int
    tuned: int
    largest: int

    def __post_init__(self) -> None:
        if not 1 <= self.smallest <= self.tuned <= self.largest:
            raise ValueError(f"a profile of batches {self.smallest}, {self.tuned}, {self.largest}: must not decrease")


def profiles_for(max_batch_size: int) -> tuple[Profile, ...]:
    """One for the few images of a quiet moment and one for load. The largest is at least 32, for the gate."""
    most = max(32, max_batch_size)
    return Profile(1, SMALL_BATCH, SMALL_BATCH), Profile(SMALL_BATCH + 1, most // 2, most)


@dataclass(frozen=True)
class Machine:
    """What a plan is bound to.

    Attributes:
        tensorrt: the release, such as "11.4.0".
        gpus: name and compute capability of each kind, such as "NVIDIA H100 80GB HBM3, 9.0".
    """

    tensorrt: str
    gpus: str


@dataclass(frozen=True)
class Fingerprint:
    """A plan with another fingerprint than the one expected is built again."""

    machine: Machine
    onnx_sha256: str
    profiles: tuple[Profile, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"


def gpu_kinds() -> str:
    """The kinds of GPUs that NVIDIA's driver sees, "" for none."""
    query = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return "; ".join(sorted({line.strip() for line in lines if line.strip()}))


def release_of(version: str) -> str:
    """The part of TensorRT's version that a plan is bound to: 11.4.0 of 11.4.0.106."""
    return ".".join(version.split(".")[:3])


def fingerprint(machine: Machine, onnx_file: Path, profiles: tuple[Profile, ...]) -> Fingerprint:
    """The fingerprint of the plan that `machine` would build from the graph."""
    return Fingerprint(machine, hashlib.sha256(onnx_file.read_bytes()).hexdigest(), profiles)


def is_current(plan: Path, expected: Fingerprint) -> bool:
    """Whether the plan is there and was built from this graph by this TensorRT for this GPU."""
    try:
        return plan.is_file() and (plan.parent / FINGERPRINT_FILE).read_text() == expected.to_json()
    except OSError:
        return False


def trtexec_arguments(
    onnx_file: Path, plan: Path, *, image: str, shape: tuple[int, int, int], profiles: tuple[Profile, ...], cache: Path
) -> list[str]:
    """For NVIDIA's tool, what `export.tensorrt_plan` sets through Python.

    `--stronglyTyped` is what 10 needs and 11 accepts without effect; neither gets a precision flag, which 11 refuses.
    TF32, which is on by default, would give float32 products the precision of float16.

    Args:
        image, shape: name of the input and the size of one image, (H, W, 3).
    """
    size = "x".join(map(str, shape))
    arguments = [
        f"--onnx={onnx_file}",
        f"--saveEngine={plan}",
        "--stronglyTyped",
        "--noTF32",
        f"--memPoolSize=workspace:{WORKSPACE_MIB}",
        f"--timingCacheFile={cache}",
        "--skipInference",
    ]
    for number, profile in enumerate(profiles):
        arguments += [
            f"--profile={number}",
            f"--minShapes={image}:{profile.smallest}x{size}",
            f"--optShapes={image}:{profile.tuned}x{size}",
            f"--maxShapes={image}:{profile.largest}x{size}",
        ]
    return arguments


def plan_settings(instances: int, profiles: tuple[Profile, ...]) -> str:
    """Settings for Triton's backend `tensorrt`: every profile, CUDA graphs of a single image and of the largest
    batch, and outputs that are copied while the next batch is computed.
    """
    names = ", ".join(f'"{number}"' for number in range(len(profiles)))
    return (
        f"instance_group {{\n  count: {instances}\n  kind: KIND_GPU\n  profile: [{names}]\n}}\n"
        "optimization {\n  cuda {\n    graphs: true\n    output_copy_stream: true\n  }\n}\n"
    )


def cuda_settings(instances: int) -> str:
    """Settings for Triton's backend `onnxruntime` on a GPU, whose native version leaves TF32 on by default."""
    return (
        f"instance_group {{\n  count: {instances}\n  kind: KIND_GPU\n}}\n"
        "optimization {\n  execution_accelerators {\n    gpu_execution_accelerator {\n"
        '      name: "cuda"\n      parameters {\n        key: "use_tf32"\n        value: "0"\n      }\n    }\n  }\n}\n'
    )
