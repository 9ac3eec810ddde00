from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from deit.errors import RepositoryError
from deit.model import Provenance
from deit.preprocessing import Preprocessing
from export.repository import Scheduling, config_text, publish
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
SCHEDULING = Scheduling(
    max_batch_size=16, instances=2, threads=1, queue_delay_us=500, queue_size=64, queue_timeout_ms=2000
)
LABELS = ("red", "green", "blue")


def config(outputs: tuple[str, ...] = ("probabilities",), num_classes: int = 3) -> str:
    return config_text(
        "tiny",
        outputs=outputs,
        num_classes=num_classes,
        preprocessing=TINY,
        provenance=PROVENANCE,
        scheduling=SCHEDULING,
    )


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    file = tmp_path / "graph" / "model.onnx"
    file.parent.mkdir()
    file.write_bytes(b"graph")
    return file


def publish_tiny(repository: Path, onnx_file: Path, text: str | None = None, labels: tuple[str, ...] = LABELS) -> int:
    return publish(
        repository, "tiny", onnx_file=onnx_file, config=text or config(), label_names=labels, provenance=PROVENANCE
    )


def test_the_configuration_says_everything() -> None:
    parsed = text_format.Parse(config(), model_config_pb2.ModelConfig())
    assert (parsed.backend, parsed.max_batch_size) == ("onnxruntime", 16)
    assert (parsed.input[0].name, list(parsed.input[0].dims)) == ("images", [16, 16, 3])
    assert parsed.input[0].data_type == model_config_pb2.TYPE_UINT8
    assert parsed.output[0].label_filename == "labels.txt"
    policy = parsed.dynamic_batching.default_queue_policy
    assert (policy.default_timeout_microseconds, policy.allow_timeout_override, policy.max_queue_size) == (
        2_000_000,
        True,
        64,
    )
    assert parsed.dynamic_batching.max_queue_delay_microseconds == 500
    assert parsed.instance_group[0].count == 2
    assert [warmup.batch_size for warmup in parsed.model_warmup] == [1, 16]
    assert Preprocessing.from_json(parsed.parameters["preprocessing"].string_value) == TINY
    assert Provenance.from_json(parsed.parameters["provenance"].string_value) == PROVENANCE


def test_a_model_appears_whole_and_the_next_version_beside_it(tmp_path: Path, onnx_file: Path) -> None:
    repository = tmp_path / "models"
    assert publish_tiny(repository, onnx_file) == 1
    onnx_file.write_bytes(b"better graph")
    assert publish_tiny(repository, onnx_file) == 2
    assert sorted(entry.relative_to(repository).as_posix() for entry in repository.rglob("*") if entry.is_file()) == [
        "tiny/1/model.onnx",
        "tiny/1/provenance.json",
        "tiny/2/model.onnx",
        "tiny/2/provenance.json",
        "tiny/config.pbtxt",
        "tiny/labels.txt",
    ]
    assert (repository / "tiny/1/model.onnx").read_bytes() == b"graph"
    assert (repository / "tiny/2/model.onnx").read_bytes() == b"better graph"


@pytest.mark.parametrize(
    ("text", "labels", "finding"),
    [
        (config(outputs=("probabilities", "class_probabilities")), LABELS, "other inputs or outputs"),
        (config(), ("red", "green", "violet"), "other class names"),
    ],
)
def test_a_version_with_another_interface_is_refused_and_nothing_changes(
    tmp_path: Path, onnx_file: Path, text: str, labels: tuple[str, ...], finding: str
) -> None:
    repository = tmp_path / "models"
    publish_tiny(repository, onnx_file)
    before = {file: file.read_bytes() for file in repository.rglob("*") if file.is_file()}
    with pytest.raises(RepositoryError, match=finding):
        publish_tiny(repository, onnx_file, text, labels)
    assert {file: file.read_bytes() for file in repository.rglob("*") if file.is_file()} == before


def test_a_failed_publication_leaves_nothing(tmp_path: Path, onnx_file: Path) -> None:
    repository = tmp_path / "models"
    with pytest.raises(FileNotFoundError):
        publish_tiny(repository, onnx_file.with_name("missing.onnx"))
    assert list(repository.iterdir()) == []
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["graph", "models"]


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, onnx_file: Path) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    with pytest.raises(RepositoryError, match="is no model that `deit export` wrote"):
        publish_tiny(tmp_path / "models", onnx_file)
