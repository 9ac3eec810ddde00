"""Triton's `onnxruntime` backend in Python, for a Triton that has only its Python backend.

Triton looks a backend up by name and takes the native library first, so one model repository works here and in NVIDIA's
image, whose `libtriton_onnxruntime.so` this file replaces. It reads the same keys of config.pbtxt:
https://github.com/triton-inference-server/onnxruntime_backend#model-config-options. Settings that it does not support
are logged as warnings, but an instance of kind GPU runs on the GPU or does not load. It runs in Triton's stub process,
one per instance, and imports from this project only what is copied to its folder: cuda_provider.py and
batched_model.py.
"""

from pathlib import Path
from typing import Any

import onnxruntime
import triton_python_backend_utils as pb_utils
from batched_model import BatchedModel, Config, cores_of_an_instance, parameters_of, warn
from cuda_provider import CPU, CUDA, TENSORRT, GpuUnavailableError, Provider, cuda_provider, gpu_session

# The native backend takes all cores by default. Here an instance is a process, and two of them that each take every
# core are slower than two with one thread each.
DEFAULT_INTRA_OP_THREADS = 1

# `optimization { graph { level } }` of the native backend
GRAPH_OPTIMIZATION = {
    -1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    0: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}

# `execution_accelerators` by the native backend's names
ACCELERATOR_PROVIDERS = {
    "tensorrt": TENSORRT,
    "cuda": CUDA,
    "openvino": "OpenVINOExecutionProvider",
}

# Accelerator parameters whose name differs from the provider's option; the others (`trt_...`) are the same.
TENSORRT_OPTIONS = {"max_workspace_size_bytes": "trt_max_workspace_size"}
TENSORRT_PRECISIONS = {"FP32": {}, "FP16": {"trt_fp16_enable": "1"}, "BF16": {"trt_bf16_enable": "1"}}


class TritonPythonModel(BatchedModel):  # type: ignore[misc]  # its file lies elsewhere for mypy
    """The name and the methods are Triton's."""

    ENGINE = "onnxruntime"

    def initialize(self, args: dict[str, str]) -> None:
        config, path = self.read(args, "model.onnx")
        try:
            if args["model_instance_kind"] == "GPU":
                providers = gpu_providers(config, args["model_instance_device_id"])
                self.session = gpu_session(path, session_options(config), providers)
            else:
                self.session = onnxruntime.InferenceSession(
                    path, session_options(config), providers=cpu_providers(config)
                )
        except GpuUnavailableError as error:
            raise pb_utils.TritonModelException(
                f"an instance of {args['model_name']} is of kind GPU and does not answer from the CPU: {error}. To run "
                "it on the CPU, export it with --engine onnxruntime, or write kind: KIND_CPU in the instance_group of "
                "its config.pbtxt"
            ) from error
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise pb_utils.TritonModelException(f"{path} does not load: {error}") from error
        self._check_names(path)
        pb_utils.Logger.log_info(
            f"{args['model_name']} version {args['model_version']}: onnxruntime {onnxruntime.__version__}, "
            f"{', '.join(self.session.get_providers())}"
        )

    def infer(self, names: list[str], inputs: dict[str, Any]) -> list[Any]:
        return list(self.session.run(names, inputs))

    def _check_names(self, path: Path) -> None:
        graph_inputs = {tensor.name for tensor in self.session.get_inputs()}
        graph_outputs = {tensor.name for tensor in self.session.get_outputs()}
        if set(self.input_names) != graph_inputs or not set(self.output_names) <= graph_outputs:
            raise pb_utils.TritonModelException(
                f"config.pbtxt and {path.name} disagree: the config has inputs {sorted(self.input_names)} and outputs "
                f"{sorted(self.output_names)}, the graph {sorted(graph_inputs)} and {sorted(graph_outputs)}"
            )


def session_options(config: Config) -> onnxruntime.SessionOptions:
    """Threads, arena and optimisation as config.pbtxt asks by the native backend's names."""
    parameters = parameters_of(config)
    options = onnxruntime.SessionOptions()
    threads = int(parameters.get("intra_op_thread_count", DEFAULT_INTRA_OP_THREADS))
    options.intra_op_num_threads = threads or cores_of_an_instance(config)
    options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", 0))
    options.enable_cpu_mem_arena = parameters.get("enable_mem_arena", "1") == "1"
    options.enable_mem_pattern = parameters.get("enable_mem_pattern", "1") == "1"
    if parameters.get("execution_mode", "0") == "1":
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    optimization = config.get("optimization") or {}
    level = int((optimization.get("graph") or {}).get("level", 0))
    if level not in GRAPH_OPTIMIZATION:
        raise pb_utils.TritonModelException(f"optimization graph level {level}: must be -1, 0, 1 or 2")
    options.graph_optimization_level = GRAPH_OPTIMIZATION[level]
    key = "session.use_device_allocator_for_initializers"
    if key in parameters:
        options.add_session_config_entry(key, parameters[key])
    if "memory.enable_memory_arena_shrinkage" in parameters:
        warn(config, "memory.enable_memory_arena_shrinkage is not supported by this backend and has no effect")
    return options


def gpu_providers(config: Config, device_id: str) -> list[Provider]:
    """What an instance on a GPU must have, first choice first. What TensorRT cannot take runs on CUDA, as with the
    native backend.
    """
    asked = accelerators(config, "gpu")
    wanted = [accelerator_provider(accelerator, device_id) for accelerator in asked]
    return wanted if any(name == CUDA for name, _ in wanted) else [*wanted, cuda_provider(device_id)]


def cpu_providers(config: Config) -> list[Provider]:
    """What an instance on the CPU takes of what is installed, the plain one last."""
    available = onnxruntime.get_available_providers()
    wanted = [accelerator_provider(accelerator, "0") for accelerator in accelerators(config, "cpu")]
    missing = [name for name, _ in wanted if name not in available]
    if missing:
        warn(
            config,
            f"{', '.join(missing)} is not in the installed onnxruntime ({', '.join(available)}); the model runs on "
            f"{' and '.join(name for name, _ in wanted if name in available) or 'the CPU'}",
        )
    return [*(provider for provider in wanted if provider[0] in available), (CPU, {})]


def accelerators(config: Config, kind: str) -> list[Config]:
    """`optimization { execution_accelerators { KIND_execution_accelerator } }`."""
    found = (config.get("optimization") or {}).get("execution_accelerators") or {}
    return list(found.get(f"{kind}_execution_accelerator") or [])


def accelerator_provider(accelerator: Config, device_id: str) -> Provider:
    """The provider and its options for one entry of `execution_accelerators`."""
    name = accelerator["name"]
    parameters: dict[str, str] = dict(accelerator.get("parameters") or {})
    if name not in ACCELERATOR_PROVIDERS:
        raise pb_utils.TritonModelException(
            f"execution accelerator {name!r} is not known; choose from {', '.join(ACCELERATOR_PROVIDERS)}"
        )
    options = {"openvino": {}, "cuda": cuda_provider(device_id)[1], "tensorrt": {"device_id": device_id}}[name]
    if name == "tensorrt":
        precision = parameters.pop("precision_mode", "FP32")
        if precision not in TENSORRT_PRECISIONS:
            raise pb_utils.TritonModelException(
                f"precision_mode {precision!r} is not supported; choose from {', '.join(TENSORRT_PRECISIONS)}"
            )
        options |= TENSORRT_PRECISIONS[precision]
    return ACCELERATOR_PROVIDERS[name], options | {TENSORRT_OPTIONS.get(k, k): v for k, v in parameters.items()}
