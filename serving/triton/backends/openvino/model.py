"""Triton's `openvino` backend in Python, for a Triton that carries only its Python backend.

As the `onnxruntime` backend beside it, this stands in for a native library of NVIDIA's image, `libtriton_openvino.so`,
which Triton takes first where there is one, and reads the same keys of config.pbtxt:
https://github.com/triton-inference-server/openvino_backend#parameters. What it cannot honour it logs as a warning. It
runs in Triton's stub process, one process an instance, and imports nothing of this project.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

try:
    import openvino
except ImportError as error:
    raise pb_utils.TritonModelException(
        f"a model of this repository runs on OpenVINO, which cannot be imported here ({error}); install the extra "
        "openvino, as docs/installation.md says, or go back to a version on onnxruntime with `deit models rollback`"
    ) from error

# The native backend loads OpenVINO's own format unless the config names another file.
DEFAULT_FILE = "model.xml"

# Keys of the native backend that ask for what happens here anyway: any batch runs in its own size.
WITHOUT_EFFECT = ("SKIP_OV_DYNAMIC_BATCHSIZE", "ENABLE_BATCH_PADDING", "RESHAPE_IO_LAYERS", "COMPILATION_NUM_THREADS")
REFUSED = ("CPU_EXTENSION_PATH", "TARGET_DEVICE")

Config = dict[str, Any]


class TritonPythonModel:
    """One instance of one model version; the name and the methods are Triton's."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        path = Path(
            args["model_repository"], args["model_version"], config.get("default_model_filename") or DEFAULT_FILE
        )
        core = openvino.Core()
        settings = settings_of(config)
        try:
            compiled = core.compile_model(core.read_model(path), "CPU", settings)
        except RuntimeError as error:
            raise pb_utils.TritonModelException(f"{path} does not load: {error}") from error
        self.batches = config["max_batch_size"] > 0
        self.input_names = [tensor["name"] for tensor in config["input"]]
        self.output_names = [tensor["name"] for tensor in config["output"]]
        try:
            self.ports = {name: compiled.output(name) for name in self.output_names}
            for name in self.input_names:
                compiled.input(name)
        except RuntimeError as error:
            raise pb_utils.TritonModelException(f"config.pbtxt and {path.name} disagree: {error}") from error
        self.request = compiled.create_infer_request()
        pb_utils.Logger.log_info(
            f"{args['model_name']} version {args['model_version']}: openvino {openvino.__version__}, "
            f"{settings['INFERENCE_NUM_THREADS']} threads, {settings['INFERENCE_PRECISION_HINT']}"
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request, in order; the batch that Triton formed runs as one."""
        groups = [requests] if self.batches else [[request] for request in requests]
        return [response for group in groups for response in self._run(group)]

    def _run(self, requests: list[Any]) -> list[Any]:
        try:
            inputs = [
                [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.input_names]
                for request in requests
            ]
            batch = inputs[0] if len(inputs) == 1 else [np.concatenate(parts) for parts in zip(*inputs, strict=True)]
            results = self.request.infer(dict(zip(self.input_names, batch, strict=True)), share_inputs=True)
        except Exception as error:  # OpenVINO raises RuntimeError, TypeError and ValueError
            failure = pb_utils.TritonError(f"openvino: {error}", pb_utils.TritonError.INTERNAL)
            return [pb_utils.InferenceResponse(error=failure) for _ in requests]
        ends = np.cumsum([len(parts[0]) for parts in inputs]).tolist()
        return [
            pb_utils.InferenceResponse(
                [
                    # a copy, because the next call writes where the results lie
                    pb_utils.Tensor(name, results[self.ports[name]][start:end].copy())
                    for name in self.output_names
                    if name in request.requested_output_names()
                ]
            )
            for request, start, end in zip(requests, [0, *ends], ends, strict=False)
        ]


def settings_of(config: Config) -> dict[str, Any]:
    """Threads, streams and precision as config.pbtxt asks by the native backend's names."""
    parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
    for name in REFUSED:
        if name in parameters:
            raise pb_utils.TritonModelException(f"{config['name']}: this backend does not support {name}")
    for name in WITHOUT_EFFECT:
        if name in parameters:
            pb_utils.Logger.log_warn(f"{config['name']}: {name} has no effect on this backend")
    return {
        "INFERENCE_NUM_THREADS": int(parameters.get("INFERENCE_NUM_THREADS", 0)) or cores_of_an_instance(config),
        "NUM_STREAMS": parameters.get("NUM_STREAMS", "1"),
        "INFERENCE_PRECISION_HINT": "bf16" if parameters.get("HINT_BF16") == "YES" else "f32",
        # an instance is a process that knows nothing of the others' pins: two would share one core
        "ENABLE_CPU_PINNING": False,
    }


def cores_of_an_instance(config: Config) -> int:
    """An equal share of the cores; the native backend would give each instance all of them."""
    instances = sum(int(group["count"]) for group in config["instance_group"])
    return max(1, len(os.sched_getaffinity(0)) // instances)
