"""Triton's `openvino` backend in Python, for a Triton that has only its Python backend.

Like the `onnxruntime` backend, this replaces a native library of NVIDIA's image, `libtriton_openvino.so`,
which Triton takes first where there is one, and reads the same keys of config.pbtxt:
https://github.com/triton-inference-server/openvino_backend#parameters. Settings that it does not support are logged as
warnings. It runs in Triton's stub process, one per instance, and imports from this project only what is copied to its
folder: batched_model.py and allowance.py.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils
from allowance import usable_cores
from batched_model import BatchedModel, Config, cores_of_an_instance, parameters_of, warn
from core_sharing import SharedCores, load_onetbb

ONETBB = load_onetbb()
try:
    import openvino
except ImportError as error:  # reported later: while Triton imports this file, pb_utils has no exceptions yet
    openvino, missing = None, error

# The native backend loads OpenVINO's own format unless the config names another file.
DEFAULT_FILE = "model.xml"

# Keys of the native backend that ask for what happens here anyway: any batch runs in its own size.
WITHOUT_EFFECT = ("SKIP_OV_DYNAMIC_BATCHSIZE", "ENABLE_BATCH_PADDING", "RESHAPE_IO_LAYERS", "COMPILATION_NUM_THREADS")
REFUSED = ("CPU_EXTENSION_PATH", "TARGET_DEVICE")


class TritonPythonModel(BatchedModel):  # type: ignore[misc]  # its file lies elsewhere for mypy
    """The name and the methods are Triton's."""

    ENGINE = "openvino"

    def initialize(self, args: dict[str, str]) -> None:
        config, path = self.read(args, DEFAULT_FILE)
        if openvino is None:
            raise pb_utils.TritonModelException(
                f"{args['model_name']} runs on OpenVINO, which cannot be imported here ({missing}); install the extra "
                "openvino, as docs/installation.md says, or export the model again with --engine onnxruntime"
            )
        core = openvino.Core()
        settings = settings_of(config)
        try:
            model = core.read_model(path)
            self.cores = shared_cores(config, model)
            if self.cores is not None:
                settings["INFERENCE_NUM_THREADS"] = usable_cores()
            compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            raise pb_utils.TritonModelException(f"{path} does not load: {error}") from error
        try:
            self.ports = {name: compiled.output(name) for name in self.output_names}
            for name in self.input_names:
                compiled.input(name)
        except RuntimeError as error:
            raise pb_utils.TritonModelException(f"config.pbtxt and {path.name} disagree: {error}") from error
        self.request = compiled.create_infer_request()
        pb_utils.Logger.log_info(
            f"{args['model_name']} version {args['model_version']}: openvino {openvino.__version__}, "
            f"{settings['INFERENCE_NUM_THREADS']} threads{' for a lone batch' if self.cores else ''}, "
            f"{settings['INFERENCE_PRECISION_HINT']}"
        )

    def infer(self, names: list[str], inputs: dict[str, Any]) -> list[Any]:
        with self.cores.taken() if self.cores else nullcontext():
            results = self.request.infer(inputs, share_inputs=True)
        return [results[self.ports[name]].copy() for name in names]  # the next call writes where the results lie


def settings_of(config: Config) -> dict[str, Any]:
    """Threads, streams and precision as config.pbtxt asks by the native backend's names."""
    parameters = parameters_of(config)
    for name in REFUSED:
        if name in parameters:
            raise pb_utils.TritonModelException(f"{config['name']}: this backend does not support {name}")
    for name in WITHOUT_EFFECT:
        if name in parameters:
            warn(config, f"{name} has no effect on this backend")
    return {
        "INFERENCE_NUM_THREADS": int(parameters.get("INFERENCE_NUM_THREADS", 0)) or cores_of_an_instance(config),
        "NUM_STREAMS": parameters.get("NUM_STREAMS", "1"),
        "INFERENCE_PRECISION_HINT": "bf16" if parameters.get("HINT_BF16") == "YES" else "f32",
        # an instance is a process that does not see the others' pinning: two would share one core
        "ENABLE_CPU_PINNING": False,
    }


def shared_cores(config: Config, model: Any) -> SharedCores | None:
    """How its instances share the cores; None if each keeps the threads of `settings_of`.

    A quantized graph keeps them: cut into parts for more threads, its products take 4 % longer under load.
    """
    share = cores_of_an_instance(config)
    is_quantized = any(operation.get_type_name() == "FakeQuantize" for operation in model.get_ops())
    if int(parameters_of(config).get("INFERENCE_NUM_THREADS", 0)) or share == usable_cores() or is_quantized:
        return None
    handicap = f"a lone batch computes on {share} of {usable_cores()} cores"
    if ONETBB is None:
        warn(config, f"{handicap}: the package tbb is missing or does not load; the extra openvino has it on x86-64")
        return None
    try:
        return SharedCores(ONETBB, Path(__file__).with_name("computing"), share)
    except (OSError, AttributeError) as error:
        warn(config, f"{handicap}: this oneTBB is not known ({error})")
        return None
