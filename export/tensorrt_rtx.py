"""TensorRT-RTX plans, for GPUs in other machines.

TensorRT-RTX is a separate library from TensorRT. It builds a plan for a named compute capability in seconds, on any
machine, without a GPU or a driver; the GPU chooses its kernels when it first runs the plan. Only a GPU can run a plan.
A plan built on another machine shows only that NVIDIA's parser and builder accepted the graph, in its types and with
attention fused where it is one operator: the builder refuses such an operator if it has no kernel for it.

https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/
"""

import importlib
import re
from pathlib import Path
from typing import Any

from deit.errors import RepositoryError
from deit.installation import how_to_install
from deit.tensorrt_plan import PLAN_FILE, Machine, Profile, fingerprint, is_current, release_of
from export.tensorrt_plan import builder_config, read_network, refuse_other_precision, write_plan


def load_tensorrt_rtx() -> Any:
    """The module. Raises RepositoryError that says what is missing."""
    try:
        return importlib.import_module("tensorrt_rtx_bindings")
    except ImportError as error:
        raise RepositoryError(
            f"--engine tensorrt-rtx needs TensorRT-RTX, which cannot be imported here ({error}); "
            f"{how_to_install('tensorrt-rtx')}"
        ) from error


def supported_capabilities(tensorrt: Any) -> tuple[str, ...]:
    """The compute capabilities that this release builds for, such as "sm89"."""
    return tuple(name.lower() for name in tensorrt.ComputeCapability.__members__ if re.fullmatch(r"SM\d+", name))


def refuse_unsupported(capabilities: tuple[str, ...]) -> None:
    """Raises RepositoryError, before anything is exported, if plans cannot be built for one of them or at all."""
    tensorrt = load_tensorrt_rtx()
    supported = supported_capabilities(tensorrt)
    for capability in capabilities:
        if capability not in supported:
            raise RepositoryError(
                f"TensorRT-RTX {tensorrt.__version__} does not build plans for {capability}, only for "
                f"{', '.join(supported)}: on a machine with that GPU use --engine tensorrt or --engine cuda"
            )


def capability_here() -> str | None:
    """The compute capability of this machine's first GPU, such as "sm89", or None if it has no GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    return "sm{}{}".format(*torch.cuda.get_device_capability(0))


def plan_file(onnx_file: Path, capability: str) -> Path:
    """Where the plan of a graph is built."""
    return onnx_file.with_suffix("") / capability / PLAN_FILE


def build_plan_for(
    capability: str, onnx_file: Path, plan: Path, *, precision: str, profiles: tuple[Profile, ...]
) -> bool:
    """Write the plan and its fingerprint, unless they are there already; returns whether it was built.

    Args:
        capability: one that `refuse_unsupported` lets through.

    Raises:
        RepositoryError: TensorRT-RTX is missing or does not accept the graph, or the graph is in another precision.
    """
    refuse_other_precision(onnx_file, precision)
    tensorrt = load_tensorrt_rtx()
    machine = Machine(
        tensorrt=f"rtx {release_of(tensorrt.__version__)}",
        gpus=f"any of compute capability {capability[2:-1]}.{capability[-1]}",
    )
    expected = fingerprint(machine, onnx_file, profiles)
    if is_current(plan, expected):
        return False
    logger = tensorrt.Logger(tensorrt.Logger.WARNING)
    builder = tensorrt.Builder(logger)
    network, _parser = read_network(tensorrt, builder, logger, onnx_file)
    config = builder_config(tensorrt, builder, network, profiles)
    config.num_compute_capabilities = 1
    config.set_compute_capability(tensorrt.ComputeCapability.__members__[capability.upper()], 0)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise RepositoryError(
            f"TensorRT-RTX {tensorrt.__version__} cannot build {onnx_file} for {capability}; its log above says why"
        )
    write_plan(plan, bytes(serialized), expected)
    return True
