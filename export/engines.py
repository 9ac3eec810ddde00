"""The engines that run a graph, as Triton's backends run it."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from deit.cuda_provider import GpuUnavailableError, cuda_provider, gpu_session
from deit.errors import RepositoryError
from deit.installation import how_to_install
from deit.model import IMAGES
from deit.tensorrt_plan import PLAN_FILE, profiles_for
from export.config import PLAN_ENGINES

Infer = Callable[[npt.NDArray[np.uint8]], list[npt.NDArray[np.float32]]]
"""uint8 images (N, H, W, 3) to every output, float32 (N, classes), in the order of the names that were asked for."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine with its settings, as config.pbtxt gives them to Triton's backend.

    Attributes:
        backend: Triton's backend: "onnxruntime", "openvino" or "tensorrt"; or "tensorrt-rtx", for which Triton has
            none.
        precision: of the graph.
        on_gpu: it computes only on the GPU: a plan, or ONNX Runtime's CUDA provider.
        capability: compute capability that a TensorRT-RTX plan is built for, such as "sm89".
        bf16: whether what the graph leaves in float32 may run in bfloat16 (OpenVINO alone).
        threads: CPU threads of one instance; 0: an equal share of the cores, served at least that; one on a GPU.
        instances: that compute side by side.
        max_batch_size: the largest batch; a plan is built for it.
    """

    backend: str
    precision: str = "fp32"
    on_gpu: bool = False
    capability: str | None = None
    bf16: bool = False
    threads: int = 0
    instances: int = 2
    max_batch_size: int = 32

    @property
    def title(self) -> str:
        """The name as in --engine, and how it differs from others of that name."""
        if self.backend == "onnxruntime" and self.on_gpu:
            return "cuda"
        if self.capability is not None:
            return f"{self.backend} {self.capability}"
        return f"{self.backend}{', rest bf16' if self.bf16 else ''}"

    @property
    def parameters(self) -> dict[str, str]:
        """Settings for config.pbtxt, by the names that NVIDIA's native backends use."""
        if self.backend == "onnxruntime":
            return {"intra_op_thread_count": str(self.threads or int(self.on_gpu))}
        if self.backend in PLAN_ENGINES:
            return {}
        return {
            "INFERENCE_NUM_THREADS": str(self.threads),
            "NUM_STREAMS": "1",
            **({"HINT_BF16": "YES"} if self.bf16 else {}),
        }

    @property
    def alone(self) -> "Engine":
        """The engine as it runs while no other instance computes: OpenVINO then takes all cores, unless the graph is
        quantized."""
        if self.backend == "openvino" and self.precision != "int8" and not self.threads:
            return replace(self, threads=len(os.sched_getaffinity(0)))
        return self

    def load(self, onnx_file: Path, outputs: tuple[str, ...]) -> Infer:
        """The engine as a function. Raises RepositoryError that says why it cannot run the graph."""
        if self.backend == "tensorrt":
            return self._load_tensorrt(onnx_file, outputs)
        if self.capability is not None:
            return self._load_tensorrt_rtx(onnx_file, outputs, self.capability)
        threads = self.threads or max(1, len(os.sched_getaffinity(0)) // self.instances)
        if self.backend == "onnxruntime":
            return _load_onnxruntime(onnx_file, outputs, None if self.on_gpu else threads)
        return _load_openvino(onnx_file, outputs, threads, bf16=self.bf16)

    def _load_tensorrt(self, onnx_file: Path, outputs: tuple[str, ...]) -> Infer:
        from export.tensorrt_plan import build_plan, load_tensorrt
        from export.tensorrt_run import load_plan

        plan = onnx_file.with_suffix("") / PLAN_FILE
        plan.parent.mkdir(exist_ok=True)
        build_plan(
            onnx_file,
            plan,
            precision=self.precision,
            profiles=profiles_for(self.max_batch_size),
            cache=Path.home() / ".cache" / "deit-server" / "tensorrt-timings",
        )
        return load_plan(load_tensorrt(), plan, outputs)

    def _load_tensorrt_rtx(self, onnx_file: Path, outputs: tuple[str, ...], capability: str) -> Infer:
        from export.tensorrt_rtx import build_plan_for, load_tensorrt_rtx, plan_file
        from export.tensorrt_run import load_plan

        plan, profiles = plan_file(onnx_file, capability), profiles_for(self.max_batch_size)
        build_plan_for(capability, onnx_file, plan, precision=self.precision, profiles=profiles)
        return load_plan(load_tensorrt_rtx(), plan, outputs)


def has_openvino() -> bool:
    from importlib.util import find_spec

    return find_spec("openvino") is not None


def candidates(precision: str, asked: str, capabilities: tuple[str, ...] = ()) -> list[Engine]:
    """The engines that may run a variant here, best known first.

    Args:
        asked: one of `config.ENGINES`; "auto" is those for CPUs, so a GPU is used only on request.
        capabilities: of the GPUs that "tensorrt-rtx" builds plans for. If this machine's GPU is not among them, the
            graph is run instead of the plans, on a CPU.

    Raises:
        RepositoryError: none of them can run it; the message says why.
    """
    if asked == "tensorrt":
        from export.tensorrt_plan import refuse_without_gpu

        refuse_without_gpu()
        return [Engine(backend="tensorrt", precision=precision, on_gpu=True)]
    if asked == "tensorrt-rtx":
        from export.tensorrt_rtx import capability_here, refuse_unsupported

        refuse_unsupported(capabilities)
        if (here := capability_here()) in capabilities:
            return [Engine(backend="tensorrt-rtx", precision=precision, on_gpu=True, capability=here)]
        return candidates(precision, "openvino" if precision == "bf16" else "onnxruntime")[:1]
    if asked == "cuda":
        refuse_without_cuda()
        return [Engine(backend="onnxruntime", precision=precision, on_gpu=True)]
    openvino = [Engine(backend="openvino", precision=precision, bf16=bf16) for bf16 in OPENVINO_BF16[precision]]
    onnxruntime_ = [] if precision == "bf16" else [Engine(backend="onnxruntime", precision=precision)]
    if asked != "onnxruntime" and not has_openvino():
        if asked == "openvino" or precision == "bf16":
            raise RepositoryError(
                f"{precision} on a CPU runs on OpenVINO, which is not installed; {how_to_install('openvino')}"
            )
        openvino = []
    found = {"auto": openvino + onnxruntime_, "openvino": openvino, "onnxruntime": onnxruntime_}[asked]
    if not found:
        raise RepositoryError(
            "ONNX Runtime has no bfloat16 products for CPUs, so it cannot run this variant here: use "
            "--engine openvino, or --engine cuda or tensorrt on a machine with a GPU"
        )
    return found


# Severity in onnxruntime. Its warnings, about inserted casts and shapes that stay on the CPU, do not help here.
LOG_ERRORS = 3

# Whether OpenVINO runs in bfloat16 what a variant leaves in float32: fp32 promises float32, the others measure both.
OPENVINO_BF16 = {"fp32": (False,), "fp16": (False,), "bf16": (False, True), "int8": (True, False)}


def refuse_without_cuda() -> None:
    """Raises RepositoryError before anything is exported, when ONNX Runtime cannot compute on a GPU here."""
    value = onnx.helper.make_tensor_value_info("value", onnx.TensorProto.FLOAT, [1])
    result = onnx.helper.make_tensor_value_info("result", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Exp", ["value"], ["result"])], "probe", [value], [result])
    opset = onnx.helper.make_opsetid("", 17)
    _session(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9).SerializeToString(), cpu_threads=None)


def _load_onnxruntime(onnx_file: Path, outputs: tuple[str, ...], cpu_threads: int | None) -> Infer:
    try:
        session = _session(onnx_file, cpu_threads)
    except RepositoryError:
        raise
    except Exception as error:  # onnxruntime's exceptions share no base class
        where = " on CUDA" if cpu_threads is None else ""
        raise RepositoryError(f"ONNX Runtime cannot run {onnx_file.name}{where}: {error}") from error
    names = list(outputs)
    return lambda images: session.run(names, {IMAGES: images})


def _session(graph: Path | bytes, cpu_threads: int | None) -> Any:
    """On the CPU with these threads; for None on the GPU, or an error where none can be used."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = LOG_ERRORS
    if cpu_threads is not None:
        options.intra_op_num_threads = cpu_threads
        return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    try:
        return gpu_session(graph, options, [cuda_provider()])
    except GpuUnavailableError as error:
        raise RepositoryError(f"--engine cuda needs a GPU, and none can be used here: {error}") from error


def _load_openvino(onnx_file: Path, outputs: tuple[str, ...], threads: int, *, bf16: bool) -> Infer:
    import openvino

    core = openvino.Core()
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        "ENABLE_CPU_PINNING": False,  # instances are processes that do not see each other's pinning
    }
    try:
        compiled = core.compile_model(core.read_model(onnx_file), "CPU", settings)
    except RuntimeError as error:
        raise RepositoryError(f"OpenVINO cannot run {onnx_file.name}: {error}") from error
    request = compiled.create_infer_request()
    ports = [compiled.output(name) for name in outputs]

    def run(images: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
        results = request.infer({IMAGES: images})
        return [np.array(results[port]) for port in ports]

    return run
