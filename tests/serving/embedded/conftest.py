"""Our backends for Triton, loaded as Triton's stub process loads them, with a stand-in for the stub's own module."""

import runpy
import sys
from types import ModuleType, SimpleNamespace

import pytest

from serving.embedded.wheel import find_wheel


class ModelException(Exception):
    pass


@pytest.fixture
def load_backend(monkeypatch, tmp_path):
    """Gives the names in a backend's file, from the folder that is made for Triton; `said` has what it logs."""
    stub = ModuleType("triton_python_backend_utils")
    said = []
    stub.TritonModelException = ModelException
    stub.Logger = SimpleNamespace(log_info=said.append, log_warn=said.append)
    monkeypatch.setitem(sys.modules, stub.__name__, stub)
    find_wheel().assemble_backends(tmp_path)
    copied = ("allowance", "cuda_provider", "batched_model", "core_sharing")
    for name in copied:
        monkeypatch.delitem(sys.modules, name, raising=False)

    def load(name):
        monkeypatch.syspath_prepend(tmp_path / name)
        return SimpleNamespace(**runpy.run_path(str(tmp_path / name / "model.py")), said=said)

    yield load
    for name in copied:
        sys.modules.pop(name, None)
