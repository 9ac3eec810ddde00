import json
from pathlib import Path

import pytest
from tritonclient.grpc import model_config_pb2

from deit.model import PROVENANCE_PARAMETER, VERIFICATION_PARAMETER, Provenance
from deit.preprocessing import Preprocessing
from deit.repository.config import parameter
from export.config import ExportConfig
from export.config_pbtxt import Scheduling, model_config, scheduling_of
from tests.training.conftest import TINY

PROVENANCE = Provenance(
    architecture="deit_tiny_distilled_patch16_224",
    checkpoint_sha256="0" * 64,
    precision="fp32",
    readout="joint-probability",
    teacher="convnet",
    parity_images=64,
    parity_max_difference=2e-6,
    metrics={"joint_top1": 0.5},
    versions={"torch": "2"},
)
SCHEDULING = Scheduling(max_batch_size=16, instances=2, queue_delay_us=500, queue_size=64, queue_timeout_ms=2000)


def config(backend: str = "onnxruntime", on_gpu: bool = False) -> model_config_pb2.ModelConfig:
    return model_config(
        backend=backend,
        on_gpu=on_gpu,
        file="model.onnx",
        backend_parameters={"intra_op_thread_count": "1"},
        outputs=("probabilities", "class_probabilities"),
        num_classes=3,
        preprocessing=TINY,
        provenance=PROVENANCE,
        verification={"top1": 0.5},
        scheduling=SCHEDULING,
    )


def test_the_configuration_says_everything() -> None:
    parsed = config()
    assert (parsed.backend, parsed.default_model_filename, parsed.max_batch_size) == ("onnxruntime", "model.onnx", 16)
    assert (parsed.input[0].name, list(parsed.input[0].dims)) == ("images", [16, 16, 3])
    assert parsed.input[0].data_type == model_config_pb2.TYPE_UINT8
    assert [output.label_filename for output in parsed.output] == ["labels.txt", ""]
    policy = parsed.dynamic_batching.default_queue_policy
    assert (policy.default_timeout_microseconds, policy.allow_timeout_override, policy.max_queue_size) == (
        2_000_000,
        True,
        64,
    )
    assert parsed.dynamic_batching.max_queue_delay_microseconds == 500
    assert [warmup.batch_size for warmup in parsed.model_warmup] == [1, 8]
    assert parsed.parameters["intra_op_thread_count"].string_value == "1"
    assert Preprocessing.from_json(parsed.parameters["preprocessing"].string_value) == TINY
    assert Provenance.from_json(parameter(parsed, PROVENANCE_PARAMETER)) == PROVENANCE
    assert json.loads(parameter(parsed, VERIFICATION_PARAMETER)) == {"top1": 0.5}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_what_was_judged_on_processors_stays_there(backend: str) -> None:
    found = config(backend)
    assert [(group.kind, group.count) for group in found.instance_group] == [(found.instance_group[0].KIND_CPU, 2)]
    assert list(found.dynamic_batching.preferred_batch_size) == [8]
    assert not found.HasField("optimization")


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_what_was_judged_on_a_gpu_runs_on_every_gpu_and_nowhere_else(backend: str) -> None:
    found = config(backend, on_gpu=True)
    (group,) = found.instance_group
    assert (group.kind, group.count, list(group.gpus)) == (group.KIND_GPU, 2, [])
    assert list(found.dynamic_batching.preferred_batch_size) == []
    accelerators = found.optimization.execution_accelerators.gpu_execution_accelerator
    assert [(each.name, dict(each.parameters)) for each in accelerators] == (
        [("cuda", {"use_tf32": "0"})] if backend == "onnxruntime" else []
    )


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        ("auto", (32, 2, 256)),
        ("onnxruntime", (32, 2, 256)),
        ("openvino", (32, 2, 256)),
        ("cuda", (128, 2, 4096)),
        ("tensorrt", (128, 1, 4096)),
    ],
)
def test_batches_instances_and_queue_suit_where_the_engine_computes(
    engine: str, expected: tuple[int, int, int]
) -> None:
    found = scheduling_of(ExportConfig(images=Path("x"), checkpoint="deit", engine=engine))
    assert (found.max_batch_size, found.instances, found.queue_size) == expected
    asked = ExportConfig(
        images=Path("x"), checkpoint="deit", engine=engine, max_batch_size=16, instances=3, queue_size=9
    )
    found = scheduling_of(asked)
    assert (found.max_batch_size, found.instances, found.queue_size) == (16, 3, 9)
