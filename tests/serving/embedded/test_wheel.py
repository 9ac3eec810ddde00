"""What stands in the way of the embedded Triton is said in one sentence, before it is started."""

import importlib.util
import platform
import sys
import sysconfig
from importlib import metadata

import pytest

from deit.errors import ServingError
from serving.embedded.wheel import WHEEL, find_libpython, find_wheel


@pytest.fixture
def versions(monkeypatch):
    """versions(numpy="2.4.6") -> as if that version were installed."""
    installed = metadata.version

    def pretend(**pretended):
        names = {name.replace("_", "-"): version for name, version in pretended.items()}
        monkeypatch.setattr(metadata, "version", lambda name: names.get(name) or installed(name))

    return pretend


def test_the_installed_wheel_is_found():
    wheel = find_wheel()
    assert wheel.version == (2, 51)
    assert wheel.binary.is_file()
    assert all(folder.is_dir() for folder in wheel.libraries)


def test_backends_are_assembled_with_the_stub_of_this_python(tmp_path):
    find_wheel().assemble_backends(tmp_path)
    files = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()}
    assert {file for file in files if not file.endswith(".pyc")} == {
        "python/libtriton_python.so",
        "python/triton_python_backend_stub",
        "python/triton_python_backend_utils.py",
        "decode_jpegs/model.py",
        "decode_jpegs/allowance.py",
        "decode_jpegs/batched_model.py",
        "onnxruntime/model.py",
        "onnxruntime/allowance.py",
        "onnxruntime/batched_model.py",
        "onnxruntime/cuda_provider.py",
        "openvino/model.py",
        "openvino/allowance.py",
        "openvino/batched_model.py",
        "openvino/core_sharing.py",
    }
    stub = (tmp_path / "python" / "triton_python_backend_stub").read_bytes()
    assert f"libpython{sys.version_info.major}.{sys.version_info.minor}.so".encode() in stub


def test_triton_finds_what_this_process_finds(monkeypatch, tmp_path):
    """Packages in a folder of PYTHONPATH, and the libraries of every nvidia-* wheel on sys.path, after Triton's own."""
    for folder in ("nvidia/cu13/lib", "nvidia/cudnn/lib", "nvidia/empty"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/cuda/lib64")
    wheel = find_wheel()
    environment = wheel.environment()
    assert environment["PYTHONPATH"].split(":") == [str(tmp_path), sysconfig.get_path("purelib")]
    libraries = environment["LD_LIBRARY_PATH"].split(":")
    assert libraries[:3] == [*map(str, wheel.libraries), "/opt/cuda/lib64"]
    assert {str(tmp_path / "nvidia/cu13/lib"), str(tmp_path / "nvidia/cudnn/lib")} <= set(libraries[3:])
    assert all(library.endswith("/lib") for library in libraries[3:])


def test_numpy_2_is_refused(versions):
    versions(numpy="2.4.6")
    with pytest.raises(ServingError, match=r"numpy 2\.4\.6 .* --extra serving"):
        find_wheel()


def test_another_wheel_is_refused(versions):
    versions(nvidia_pytriton="0.8.0")
    with pytest.raises(ServingError, match=rf"{WHEEL} 0\.8\.0 .* --extra serving"):
        find_wheel()


def test_a_missing_wheel_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ServingError, match=r"--extra serving"):
        find_wheel()


@pytest.mark.parametrize(("system", "machine"), [("Darwin", "arm64"), ("Windows", "AMD64"), ("Linux", "riscv64")])
def test_another_platform_is_named(monkeypatch, system, machine):
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(ServingError, match=rf"this is {system} {machine}.*--triton-url"):
        find_wheel()


@pytest.mark.parametrize(("library", "version"), [("glibc", "2.31"), ("", ""), ("musl", "1.2.4")])
def test_another_c_library_is_named(monkeypatch, library, version):
    monkeypatch.setattr(platform, "libc_ver", lambda: (library, version))
    with pytest.raises(ServingError, match=r"glibc 2\.35 or later"):
        find_wheel()


def test_a_missing_libpython_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: str(tmp_path / name))
    with pytest.raises(ServingError, match="apt install libpython"):
        find_libpython()


def test_libpython_is_found_where_debian_keeps_it(monkeypatch, tmp_path):
    folder = tmp_path / "lib" / "x86_64-linux-gnu"
    folder.mkdir(parents=True)
    (folder / f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0").touch()
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path / "usr"))
    variables = {"LIBDIR": str(tmp_path / "lib"), "MULTIARCH": "x86_64-linux-gnu"}
    monkeypatch.setattr(sysconfig, "get_config_var", variables.get)
    assert find_libpython() == folder
