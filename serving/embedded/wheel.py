"""The wheel `nvidia-pytriton`: where its `tritonserver` and libraries are, and whether they can run here.

Only the files are used; the package `pytriton` is never imported.
"""

import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import deit
from deit.errors import ServingError
from deit.installation import how_to_install

WHEEL = "nvidia-pytriton"

# Wheel version -> Triton version, from pytriton's CHANGELOG.md. The binary has no --version.
TRITON_OF_WHEEL = {"0.7.0": (2, 51)}

MACHINES = ("x86_64", "aarch64")
GLIBC = (2, 35)
"""The wheel is tagged manylinux_2_35."""

BACKENDS = Path(__file__).parent / "backends"
"""Our Python-based backends, a folder each, and what they share."""

CUDA_PROVIDER = Path(deit.__file__).with_name("cuda_provider.py")
"""What the onnxruntime backend shares with `deit export` and `deit classify-dataset`."""

ALLOWANCE = Path(deit.__file__).with_name("allowance.py")
"""How many cores there are for the backends' threads."""


@dataclass(frozen=True, kw_only=True)
class TritonWheel:
    """The parts of an installed wheel that can run with this interpreter.

    Attributes:
        version: of Triton, such as (2, 51).
        root: `pytriton/tritonserver` in site-packages.
        libraries: folders for LD_LIBRARY_PATH: the wheel's own and libpython's.
    """

    version: tuple[int, int]
    root: Path
    libraries: tuple[Path, Path]

    @property
    def binary(self) -> Path:
        return self.root / "bin" / "tritonserver"

    def assemble_backends(self, folder: Path) -> None:
        """Fill `folder` for --backend-directory: the Python backend with this interpreter's stub, and our backends.

        Copied, because Triton resolves symbolic links and refuses a library that "escapes backend directory".
        """
        shutil.copytree(self.root / "backends" / "python", folder / "python")
        shutil.copy(self._stub, folder / "python")
        for source in (model.parent for model in BACKENDS.glob("*/model.py")):
            backend = folder / source.name
            shutil.copytree(source, backend, ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copy(BACKENDS / "batched_model.py", backend)
            shutil.copy(ALLOWANCE, backend)
        shutil.copy(CUDA_PROVIDER, folder / "onnxruntime")

    def environment(self) -> dict[str, str]:
        """Environment for Triton: this process's own, with what the Python stub needs to find this interpreter."""
        environment = dict(os.environ)
        # The stub embeds Python, which finds its standard library through the `python3` that comes first in PATH.
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
        # In the order in which this process looks for packages
        environment["PYTHONPATH"] = _joined([environment.get("PYTHONPATH"), sysconfig.get_path("purelib")])
        environment["LD_LIBRARY_PATH"] = _joined(
            [*self.libraries, environment.get("LD_LIBRARY_PATH"), *nvidia_libraries()]
        )
        environment.pop("PYTHONHOME", None)
        # Our backends compute in ONNX Runtime or OpenVINO. Left alone, numpy keeps a thread for each core of the
        # machine in each instance's process: with four of them on 64 cores 250 threads that never run.
        environment.setdefault("OPENBLAS_NUM_THREADS", "1")
        return environment

    @property
    def _stub(self) -> Path:
        return self.root / "python_backend_stubs" / python_minor() / "triton_python_backend_stub"


def nvidia_libraries() -> list[Path]:
    """The folders in which the wheels nvidia-* keep CUDA, cuDNN and cuBLAS, such as nvidia/cu13/lib; none without one.

    ONNX Runtime opens some of them by name while it computes, when it is too late for a package to help.
    nvImageCodec makes `nvidia` a package of its folder alone, so Python does not know all of them.
    """
    return [library for folder in sys.path for library in sorted(Path(folder).glob("nvidia/*/lib"))]


def _joined(folders: Iterable[Path | str | None]) -> str:
    return os.pathsep.join(str(folder) for folder in folders if folder)


def find_wheel() -> TritonWheel:
    """Raises ServingError if the embedded Triton cannot run here, with what to do."""
    check_platform()
    check_numpy()
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise ServingError(
            f"the embedded Triton ({WHEEL}) is not installed; use an external Triton with --triton-url, or "
            f"{how_to_install('serving')}"
        )
    installed = metadata.version(WHEEL)
    if installed not in TRITON_OF_WHEEL:
        raise ServingError(
            f"{WHEEL} {installed} is installed, but this server supports only {', '.join(TRITON_OF_WHEEL)}; "
            f"{how_to_install('serving')}"
        )
    package = Path(spec.origin).parent
    wheel = TritonWheel(
        version=TRITON_OF_WHEEL[installed],
        root=package / "tritonserver",
        libraries=(package.parent / "nvidia_pytriton.libs", find_libpython()),
    )
    for part in (wheel.binary, wheel._stub, wheel.libraries[0]):
        if not part.exists():
            raise ServingError(f"{part} of {WHEEL} is missing; {how_to_install('serving', reinstall=WHEEL)}")
    return wheel


def check_platform() -> None:
    system, machine = platform.system(), platform.machine()
    if system != "Linux" or machine not in MACHINES:
        raise ServingError(
            f"the embedded Triton runs on Linux ({' or '.join(MACHINES)}), and this is {system} {machine}; "
            "use an external Triton with --triton-url"
        )
    library, version = platform.libc_ver()
    if library != "glibc" or tuple(map(int, version.split(".")[:2])) < GLIBC:
        raise ServingError(
            f"the embedded Triton needs glibc {GLIBC[0]}.{GLIBC[1]} or later (Ubuntu 22.04, Debian 12), and this is "
            f"{library or 'another C library'} {version}; "
            "use an external Triton with --triton-url"
        )


def check_numpy() -> None:
    """Refuse numpy 2, with which this Triton's Python backend reads wrong pixels, without an error."""
    version = metadata.version("numpy")
    if int(version.partition(".")[0]) >= 2:
        raise ServingError(
            f"numpy {version} is installed, with which the embedded Triton gives wrong results; it needs one below 2: "
            f"{how_to_install('serving')}"
        )


def find_libpython() -> Path:
    """The folder of the shared libpython that the stub links to."""
    name = f"libpython{python_minor()}.so.1.0"
    folder = Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib")
    # Debian keeps it in a folder named after the machine, a relocated interpreter (uv, conda) under its own prefix.
    multiarch = sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu"
    candidates = [Path(sys.base_prefix) / "lib", folder, folder / multiarch, Path("/usr/lib") / multiarch]
    for candidate in candidates:
        if (candidate / name).is_file():
            return candidate
    raise ServingError(
        f"{name} was not found in {', '.join(map(str, dict.fromkeys(candidates)))}, and the embedded Triton needs it; "
        f"install it (Debian, Ubuntu: apt install libpython{python_minor()}), or use a Python built with "
        "--enable-shared, such as uv's"
    )


def python_minor() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"
