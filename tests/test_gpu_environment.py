"""What `uv sync --extra gpu` installs is enough for ONNX Runtime to reach a GPU. None is needed to see that."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY_ROOT

UV = [str(Path(sys.executable).with_name("uv"))]
EXTRA = ["--frozen", "--no-default-groups", "--extra", "gpu"]

# NEEDED of libonnxruntime_providers_cuda.so 1.31.1, and what it and nvImageCodec open later by name, with the packages
# that have them.
# The soak test below compares with the real file. libcuda.so.1 comes with NVIDIA's driver.
PACKAGES = {
    "libcublas.so.13": "nvidia-cublas",
    "libcublasLt.so.13": "nvidia-cublas",
    "libcudart.so.13": "nvidia-cuda-runtime",
    "libcudnn.so.9": "nvidia-cudnn-cu13",
    "libcufft.so.12": "nvidia-cufft",
    "libcurand.so.10": "nvidia-curand",
    "libnvjpeg.so.13": "nvidia-nvjpeg",
    "libnvrtc.so.13": "nvidia-cuda-nvrtc",
}


def test_the_lock_has_every_library_that_the_cuda_provider_needs():
    exported = subprocess.run(
        [*UV, "export", "--quiet", *EXTRA, "--no-hashes", "--no-emit-project"],
        cwd=REPOSITORY_ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    # what a marker keeps from Linux on x86_64 does not count
    lines = [
        line for line in exported.splitlines() if re.match(r"[a-z]", line) and "win32" not in line.split(" or ")[0]
    ]
    locked = {re.match(r"[a-z0-9-]+", line)[0] for line in lines}
    assert {"onnxruntime-gpu", "nvidia-nvimgcodec-cu13"} <= locked
    assert "onnxruntime" not in locked
    assert set(PACKAGES.values()) <= locked


@pytest.fixture(scope="module")
def gpu_environment(tmp_path_factory):
    """site-packages of the extra, without TensorRT, whose package on PyPI fetches the libraries from elsewhere."""
    folder = tmp_path_factory.mktemp("gpu") / "venv"
    without = [f"--no-install-package={name}" for name in ("tensorrt", "tensorrt-cu13", "tensorrt-cu13-libs")]
    subprocess.run(
        [*UV, "sync", *EXTRA, *without, "--no-install-package=tensorrt-cu13-bindings", "--python", sys.executable],
        cwd=REPOSITORY_ROOT,
        env={**os.environ, "UV_PROJECT_ENVIRONMENT": str(folder)},
        check=True,
    )
    return next(folder.glob("lib/python3*/site-packages"))


def not_found(site_packages, provider):
    """The libraries that the loader does not find for a provider of onnxruntime-gpu."""
    library = site_packages / "onnxruntime" / "capi" / f"libonnxruntime_providers_{provider}.so"
    folders = ":".join(map(str, site_packages.glob("nvidia/*/lib")))
    listed = subprocess.run(
        ["ldd", library], env={**os.environ, "LD_LIBRARY_PATH": folders}, check=True, capture_output=True, text=True
    ).stdout
    assert "libcudart.so.13 =>" in listed
    return set(re.findall(r"(\S+) => not found", listed))


@pytest.mark.soak
def test_the_loader_finds_all_but_the_driver(gpu_environment):
    assert not_found(gpu_environment, "cuda") <= {"libcuda.so.1"}
    for name in PACKAGES:
        assert list(gpu_environment.glob(f"nvidia/*/lib/{name}")), name
    # Built with TensorRT 10, and the lock has 11: plans are for TensorRT, graphs are for CUDA.
    assert not_found(gpu_environment, "tensorrt") - {"libcuda.so.1"} == {"libnvinfer.so.10", "libnvonnxparser.so.10"}


SESSION = """
import onnxruntime
from deit.cuda_provider import GpuUnavailableError, cuda_provider, gpu_session
assert "CUDAExecutionProvider" in onnxruntime.get_available_providers()
try:
    print(gpu_session("model_repository/deit_cifar10/1/model.onnx", None, [cuda_provider()]).get_providers())
except GpuUnavailableError as error:
    print(error)
"""


@pytest.mark.soak
def test_a_session_is_on_the_gpu_or_names_the_driver(gpu_environment):
    """With the real onnxruntime-gpu, which says that it has CUDA wherever it is installed."""
    python = gpu_environment.parents[2] / "bin" / "python"
    done = subprocess.run([python, "-c", SESSION], cwd=REPOSITORY_ROOT, check=True, capture_output=True, text=True)
    assert "'CUDAExecutionProvider'" in done.stdout or re.search(
        r"libcuda\.so\.1: .*install NVIDIA's driver|finds no GPU|the GPU cannot be used", done.stdout
    )
