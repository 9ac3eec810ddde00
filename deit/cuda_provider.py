"""ONNX Runtime on an NVIDIA GPU, or an error that says why not.

`onnxruntime.get_available_providers()` lists what a package was compiled with. Whether its libraries load shows only in
the providers of a session: if they do not, ONNX Runtime logs a line and computes on the CPU
(https://github.com/microsoft/onnxruntime/issues/23372). Sessions from this file never do.

Imports nothing of ours, because Triton's stub process gets a copy of this file without the rest.
"""

import contextlib
import ctypes
import io
import os
from pathlib import Path
from typing import Any

import onnxruntime

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
CPU = "CPUExecutionProvider"

LIBRARIES = {CUDA: "libonnxruntime_providers_cuda.so", TENSORRT: "libonnxruntime_providers_tensorrt.so"}

Provider = tuple[str, dict[str, str]]
"""Name and options."""


class GpuUnavailableError(RuntimeError):
    """A session that must run on a GPU cannot; the message names what is missing and the next step."""


def cuda_provider(device_id: str = "0") -> Provider:
    """CUDA in the precision of the graph. TF32, ONNX Runtime's default, rounds the factors of float32 products to 10
    bits and moves probabilities by more than the gate allows.
    """
    return CUDA, {"device_id": device_id, "use_tf32": "0"}


def gpu_session(graph: Path | bytes, options: onnxruntime.SessionOptions, providers: list[Provider]) -> Any:
    """A session with all of `providers`, and the CPU for operations that they do not run, such as shapes.

    Raises:
        GpuUnavailableError: one of the providers is not in the package, does not load, or finds no GPU.
    """
    for name, _ in providers:
        if name not in onnxruntime.get_available_providers():
            raise GpuUnavailableError(missing(name))
    if any(name == TENSORRT for name, _ in providers):
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # the provider has no option for it
    if hasattr(onnxruntime, "preload_dlls"):
        # It finds the libraries in the wheels nvidia-*, and prints what is missing, which `missing` reports better.
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()
    # Without its fallback, which would compute on the CPU after the first error on the GPU.
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=[*providers, CPU], enable_fallback=0)
    except Exception as error:  # onnxruntime's exceptions share no base class
        if "CUDA failure" in str(error):
            raise GpuUnavailableError(f"the GPU cannot be used: {error}; see what nvidia-smi says") from error
        for name, _ in providers:
            if _load_error(name):
                raise GpuUnavailableError(missing(name)) from error
        raise
    for name, _ in providers:
        if name not in session.get_providers():
            raise GpuUnavailableError(missing(name))
    return session


def missing(provider: str) -> str:
    """Why a GPU provider is missing, and the next step."""
    folder = Path(onnxruntime.__file__).parent / "capi"
    if provider not in LIBRARIES or not (folder / LIBRARIES[provider]).is_file():
        return (
            f"onnxruntime {onnxruntime.__version__} here has no {provider} (it has "
            f"{', '.join(onnxruntime.get_available_providers())}): install the extra gpu, as docs/installation.md "
            "says, in a separate environment, which has onnxruntime-gpu instead"
        )
    error = _load_error(provider)
    if error:
        return f"{provider} does not load: {error}: {_next_step(error)}"
    return f"{provider} loads but finds no GPU that it can use: see what nvidia-smi says"


def _load_error(provider: str) -> str:
    """The loader's error for a provider's library, "" if it loads. Call it only after onnxruntime has tried, because
    onnxruntime must load its libraries itself.
    """
    folder = Path(onnxruntime.__file__).parent / "capi"
    try:
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / LIBRARIES[provider]))
    except OSError as error:
        return str(error)
    return ""


def _next_step(error: str) -> str:
    if "libcuda.so" in error:
        return "install NVIDIA's driver, or start the container with its GPUs (docker run --gpus all)"
    if "libnvinfer" in error or "libnvonnxparser" in error:
        return (
            "this onnxruntime-gpu is built with that TensorRT and no other: take the accelerator out of config.pbtxt "
            "and run on CUDA, or build a plan with `deit export --engine tensorrt`"
        )
    return "install the extra gpu, as docs/installation.md says; it brings the libraries of CUDA and cuDNN"
