"""The step `host`: whether this machine has what the GPU paths need. Also the device of all steps."""

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.environment import this_environment
from benchmark.gpu_check.config import GpuCheckConfig
from benchmark.gpu_check.finding import Finding, NotPossible, judged

if TYPE_CHECKING:
    import torch

SHARED_MEMORY_MIB = 512
"""What two instances with batches of 128 images of 224 pixels take in /dev/shm, with room."""


def device_of(config: GpuCheckConfig) -> "torch.device":
    """The GPU, or the CPU in a rehearsal. Raises NotPossible where PyTorch finds no GPU."""
    import torch

    if config.rehearse:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise NotPossible(f"PyTorch {torch.__version__} finds no GPU: see the step host")
    return torch.device("cuda")


def check(config: GpuCheckConfig) -> Iterator[Finding]:
    """Driver, PyTorch, libraries, shared memory."""
    here = this_environment()
    yield Finding(
        name="machine",
        verdict="measured",
        text=f"{here.machine}, {here.memory_gib} GiB, {here.system}, Python {platform.python_version()}",
    )
    yield driver()
    yield pytorch(config)
    yield library("libcuda.so.1", "the driver, which CUDA programs load")
    yield library(f"libpython3.{sys.version_info.minor}.so.1.0", "the embedded Triton's Python backend links to it")
    yield library("libnvinfer.so.11", "TensorRT 11, for plans")
    yield shared_memory()
    yield server()


def driver() -> Finding:
    if shutil.which("nvidia-smi") is None:
        return Finding(name="driver", verdict="not possible here", text="nvidia-smi is not installed")
    query = "name,driver_version,memory.total,compute_cap,clocks.max.sm,power.limit"
    done = subprocess.run(
        ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return judged("driver", done.returncode == 0, (done.stdout or done.stderr).strip().replace("\n", "; "))


def pytorch(config: GpuCheckConfig) -> Finding:
    import torch

    if not torch.cuda.is_available():
        text = f"{torch.__version__} finds no GPU"
        return Finding(name="PyTorch", verdict="measured" if config.rehearse else "failed", text=text)
    properties = torch.cuda.get_device_properties(0)
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return judged(
        "PyTorch",
        True,
        f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {cudnn}: {properties.name}, "
        f"{properties.multi_processor_count} multiprocessors, {properties.total_memory / 2**30:.0f} GiB, "
        f"{torch.cuda.device_count()} GPU",
    )


def library(name: str, purpose: str) -> Finding:
    """Whether the dynamic linker finds a library. One that is not needed everywhere does not fail the step."""
    try:
        ctypes.CDLL(name)
    except OSError as error:
        return Finding(name=name, verdict="not possible here", text=f"{purpose}: {error}")
    return judged(name, True, purpose)


def shared_memory() -> Finding:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return judged("/dev/shm", False, "missing; Triton's Python backend passes tensors through it")
    free = os.statvfs(folder)
    mib = free.f_bavail * free.f_frsize / 2**20
    return judged("/dev/shm", mib >= SHARED_MEMORY_MIB, f"{mib:.0f} MiB free, {SHARED_MEMORY_MIB} MiB are needed")


def server() -> Finding:
    """Whether everything that `deit serve` imports is installed: checked first, because the export takes minutes."""
    program = [sys.executable, "-c", "import serving.launcher"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    lines = done.stderr.strip().splitlines()
    return judged("packages of deit serve", done.returncode == 0, lines[-1] if lines else "all of them import")
