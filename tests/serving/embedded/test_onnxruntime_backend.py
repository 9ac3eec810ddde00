"""Our onnxruntime backend where it meets a GPU. There is none here, so Triton makes no instance of kind GPU."""

import json

import pytest

from tests.conftest import REPOSITORY_ROOT
from tests.serving.embedded.conftest import ModelException

MODEL = REPOSITORY_ROOT / "model_repository" / "deit_cifar10"


@pytest.fixture
def backend(load_backend):
    return load_backend("onnxruntime")


def config(**optimization):
    return {
        "name": "deit_cifar10",
        "default_model_filename": "model.onnx",
        "max_batch_size": 32,
        "input": [{"name": "images"}],
        "output": [{"name": name} for name in ("probabilities", "class_probabilities", "distillation_probabilities")],
        "instance_group": [{"count": 2}],
        "parameters": {},
        "optimization": optimization,
    }


def accelerated(kind, name, **parameters):
    return config(execution_accelerators={f"{kind}_execution_accelerator": [{"name": name, "parameters": parameters}]})


def initialize(backend, settings, kind):
    model = backend.TritonPythonModel()
    model.initialize(
        {
            "model_config": json.dumps(settings),
            "model_repository": str(MODEL),
            "model_name": "deit_cifar10",
            "model_version": "1",
            "model_instance_kind": kind,
            "model_instance_device_id": "0",
        }
    )
    return model


def test_an_instance_of_kind_gpu_does_not_load_without_cuda(backend):
    with pytest.raises(
        ModelException, match=r"deit_cifar10 is of kind GPU .* no CUDAExecutionProvider .*the extra gpu.*KIND_CPU"
    ):
        initialize(backend, config(), "GPU")


@pytest.mark.parametrize(
    ("accelerator", "missing"), [("tensorrt", "TensorrtExecutionProvider"), ("openvino", "OpenVINOExecutionProvider")]
)
def test_neither_does_it_without_an_accelerator_that_was_asked_for(backend, accelerator, missing):
    with pytest.raises(ModelException, match=f"has no {missing}"):
        initialize(backend, accelerated("gpu", accelerator), "GPU")


def test_an_instance_of_kind_cpu_runs_on_the_cpu(backend):
    model = initialize(backend, config(), "CPU")
    assert model.session.get_providers() == ["CPUExecutionProvider"]
    assert "deit_cifar10 version 1: onnxruntime" in backend.said[-1]


def test_tf32_is_off_unless_the_accelerator_asks_for_it(backend):
    assert backend.gpu_providers(config(), "1") == [("CUDAExecutionProvider", {"device_id": "1", "use_tf32": "0"})]
    assert backend.gpu_providers(accelerated("gpu", "cuda", use_tf32="1"), "0") == [
        ("CUDAExecutionProvider", {"device_id": "0", "use_tf32": "1"})
    ]


def test_what_tensorrt_leaves_runs_on_cuda(backend):
    assert backend.gpu_providers(accelerated("gpu", "tensorrt", precision_mode="FP16"), "0") == [
        ("TensorrtExecutionProvider", {"device_id": "0", "trt_fp16_enable": "1"}),
        ("CUDAExecutionProvider", {"device_id": "0", "use_tf32": "0"}),
    ]
