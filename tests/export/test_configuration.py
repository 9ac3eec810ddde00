import json

from tritonclient.grpc import model_config_pb2

from deit.model import PROVENANCE_PARAMETER, VERIFICATION_PARAMETER, Provenance
from deit.preprocessing import Preprocessing
from deit.repository.config import parameter
from export.configuration import Scheduling, model_config
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


def config(backend: str = "onnxruntime") -> model_config_pb2.ModelConfig:
    return model_config(
        backend=backend,
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
    assert [warmup.batch_size for warmup in parsed.model_warmup] == [1, 16]
    assert parsed.parameters["intra_op_thread_count"].string_value == "1"
    assert Preprocessing.from_json(parsed.parameters["preprocessing"].string_value) == TINY
    assert Provenance.from_json(parameter(parsed, PROVENANCE_PARAMETER)) == PROVENANCE
    assert json.loads(parameter(parsed, VERIFICATION_PARAMETER)) == {"top1": 0.5}


def test_an_engine_of_processors_asks_for_no_gpu() -> None:
    kinds = model_config_pb2.ModelInstanceGroup
    assert [(group.kind, group.count) for group in config().instance_group] == [(kinds.KIND_AUTO, 2)]
    assert [(group.kind, group.count) for group in config("openvino").instance_group] == [(kinds.KIND_CPU, 2)]
