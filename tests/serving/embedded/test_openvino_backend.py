"""Our openvino backend: how instances share the cores. In this one process, because each opens the lock's file anew."""

import ctypes
import json
from pathlib import Path

import numpy as np
import openvino
import pytest

from deit.allowance import usable_cores
from tests.conftest import REPOSITORY_ROOT

MODELS = REPOSITORY_ROOT / "model_repository"
ACTIVE_VALUE = "_ZN3tbb6detail2r127global_control_active_valueEi"


def allowed_threads():
    """How many threads oneTBB may use in this process now, by its own account."""
    (library,) = Path(openvino.__file__).parent.glob("libs/libtbb.so.*")
    return ctypes.CDLL(str(library))[ACTIVE_VALUE](0)


@pytest.fixture
def instance(load_backend, monkeypatch):
    """Makes an instance of a model that ships, on a machine of at least four cores as it sees it."""
    backend = load_backend("openvino")
    for function in (backend.shared_cores, backend.cores_of_an_instance):
        monkeypatch.setitem(function.__globals__, "usable_cores", lambda: max(4, usable_cores()))

    def make(model="deit_cifar10", **parameters):
        config = {
            "name": model,
            "default_model_filename": "model.onnx",
            "max_batch_size": 32,
            "input": [{"name": "images"}],
            "output": [{"name": "probabilities"}],
            "instance_group": [{"count": 2}],
            "parameters": {name: {"string_value": value} for name, value in parameters.items()},
        }
        made = backend.TritonPythonModel()
        folder = {"model_repository": str(MODELS / model), "model_name": model, "model_version": "1"}
        made.initialize({"model_config": json.dumps(config), **folder})
        return made

    make.said = backend.said
    return make


def probabilities(instance, image):
    (found,) = instance.infer(["probabilities"], {"images": image})
    return found


def test_a_lone_batch_takes_all_cores_and_batches_at_the_same_time_a_share(instance):
    cores = max(4, usable_cores())
    first, second = instance(), instance()
    assert f"{cores} threads for a lone batch" in instance.said[-1]
    image = np.random.default_rng(0).integers(0, 256, (1, *first.request.get_input_tensor().shape[1:]), np.uint8)
    before = allowed_threads()
    alone = probabilities(first, image)
    with second.cores.taken():
        assert allowed_threads() == before
        with first.cores.taken():
            assert allowed_threads() == cores // 2
        np.testing.assert_array_equal(probabilities(first, image), alone)
    with first.cores.taken():
        assert allowed_threads() == before


@pytest.mark.parametrize(
    ("model", "parameters"), [("deit_cifar10_int8", {}), ("deit_cifar10", {"INFERENCE_NUM_THREADS": "1"})]
)
def test_quantized_graphs_and_numbers_of_threads_that_were_asked_for_are_left_alone(instance, model, parameters):
    assert instance(model, **parameters).cores is None
    assert "lone" not in instance.said[-1]
