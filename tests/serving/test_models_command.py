"""`deit models` as its users run it: a process, which has no torch and no onnx to import."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deit.errors import RepositoryError
from deit.onnx_file import external_files
from deit.repository import read_config, served_version
from serving.doctor import examine
from serving.promotion import promote
from tests.conftest import REPOSITORY_ROOT

SHIPPED = REPOSITORY_ROOT / "model_repository" / "deit_cifar10"

# What an installation with the extra [serving] alone does not have.
WITHOUT_TRAINING = """
import sys
for name in ("torch", "timm", "onnx", "pyarrow", "openvino"):
    sys.modules[name] = None
from deit.cli import main
main()
"""


def models(*arguments: object, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRAINING, "models", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY_ROOT,
    )
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    shutil.copytree(SHIPPED, tmp_path / "models" / "tiny")
    config = tmp_path / "models" / "tiny" / "config.pbtxt"
    config.write_text(config.read_text().replace('name: "deit_cifar10"', 'name: "tiny"'))
    return tmp_path / "models"


def test_a_model_goes_from_staging_to_production_and_back_again(repository: Path, tmp_path: Path) -> None:
    """Publish twice, list, go back, remove: the life of a model."""
    production = tmp_path / "production"
    for _ in range(2):
        published = models("publish", repository / "tiny", "--repository", production)
    assert published.strip() == str(production / "tiny" / "2")
    assert "tiny" in (listed := models("list", "--repository", production))
    assert "1, 2" in listed
    assert "version 1 instead of 2" in models("rollback", "tiny", "--repository", production)
    assert served_version(production / "tiny") == 1
    shown = models("show", "tiny", "--repository", production)
    assert "1 (served)" in shown
    assert "checkpoint_sha256" in shown
    assert "is the version that is served" in models(
        "remove", "tiny", "--version", 1, "--repository", production, status=1
    )
    models("remove", "tiny", "--version", 2, "--repository", production)
    assert models("doctor", "--repository", production) == f"{production} is sound\n"
    assert "has no version before 1" in models("rollback", "tiny", "--repository", production, status=1)


def change(repository: Path, before: str, after: str) -> None:
    config = repository / "tiny" / "config.pbtxt"
    assert before in config.read_text()
    config.write_text(config.read_text().replace(before, after))


def no_labels(repository: Path) -> None:
    (repository / "tiny" / "labels.txt").unlink()


def too_few_labels(repository: Path) -> None:
    (repository / "tiny" / "labels.txt").write_text("cat\ndog\n")


def unknown_backend(repository: Path) -> None:
    change(repository, 'backend: "onnxruntime"', 'backend: "caffe2"')


def no_graph(repository: Path) -> None:
    for graph in repository.glob("tiny/*/model.onnx"):
        graph.unlink()


def half_a_graph(repository: Path) -> None:
    for graph in repository.glob("tiny/*/model.onnx"):
        graph.write_bytes(graph.read_bytes()[:100_000])


def weights_outside(repository: Path) -> None:
    import onnx

    for graph in repository.glob("tiny/*/model.onnx"):
        onnx.save(onnx.load(graph), graph, save_as_external_data=True, location="weights.bin", size_threshold=0)


def weights_above_the_folder(repository: Path) -> None:
    weights_outside(repository)
    for graph in repository.glob("tiny/*/model.onnx"):
        graph.write_bytes(graph.read_bytes().replace(b"weights.bin", b"../w../etc/"))


def no_version(repository: Path) -> None:
    for graph in repository.glob("tiny/*/model.onnx"):
        shutil.rmtree(graph.parent)


def another_name(repository: Path) -> None:
    change(repository, 'name: "tiny"', 'name: "small"')


def no_configuration(repository: Path) -> None:
    (repository / "tiny" / "config.pbtxt").write_text("backend = onnxruntime\n")


def no_preprocessing(repository: Path) -> None:
    change(repository, 'key: "preprocessing"', 'key: "preparing"')


def left_of_a_killed_writer(repository: Path) -> None:
    (repository.parent / ".models.publishing").mkdir()


@pytest.mark.parametrize(
    ("fault", "finding"),
    [
        (no_labels, "labels.txt has no class names"),
        (too_few_labels, "names 2 classes, the model decides among [10]"),
        (unknown_backend, "asks for the backend 'caffe2'; there are onnxruntime, openvino, tensorrt"),
        (no_graph, "model.onnx is missing"),
        (half_a_graph, "is no ONNX file: it is cut off"),
        (weights_outside, "keeps weights in other files (weights.bin)"),
        (weights_above_the_folder, "keeps weights in other files (../w../etc/)"),
        (no_version, "serves no version"),
        (another_name, "names the model 'small'"),
        (no_configuration, "is no configuration that Triton reads"),
        (no_preprocessing, "does not say how to prepare an image"),
        (left_of_a_killed_writer, "is left of a writer that was killed"),
    ],
)
def test_doctor_names_what_is_wrong_and_only_that(repository: Path, fault: object, finding: str) -> None:
    assert examine(repository) == []
    fault(repository)
    (found,) = examine(repository)
    assert finding in found


def test_doctor_compares_a_plan_with_the_tensorrt_that_will_load_it(repository: Path) -> None:
    change(repository, 'backend: "onnxruntime"', 'backend: "tensorrt"')
    change(repository, 'default_model_filename: "model.onnx"', 'default_model_filename: "model.plan"')
    (version,) = (graph.parent for graph in repository.glob("tiny/*/model.onnx"))
    (version / "model.plan").write_bytes(b"plan")
    (found,) = examine(repository)
    assert "has no fingerprint.json" in found
    (version / "fingerprint.json").write_text(json.dumps({"machine": {"tensorrt": "10.13.0"}}))
    assert examine(repository, tensorrt="10.13.0.35") == []
    (found,) = examine(repository, tensorrt="11.1.0")
    assert "was built with TensorRT 10.13.0, and TensorRT 11.1.0 will load it" in found
    assert "10.13.0" in models("doctor", "--tensorrt", "11.1.0", "--repository", repository, status=1)


def test_what_is_not_sound_is_not_published(repository: Path, tmp_path: Path) -> None:
    no_labels(repository)
    with pytest.raises(RepositoryError, match="is not published: .*labels.txt has no class names"):
        promote(repository / "tiny", tmp_path / "production", "tiny", None)
    assert not (tmp_path / "production").exists()


def test_a_link_in_a_version_is_copied_as_bytes(repository: Path, tmp_path: Path) -> None:
    (graph,) = repository.glob("tiny/*/model.onnx")
    graph.rename(tmp_path / "elsewhere.onnx")
    graph.symlink_to(tmp_path / "elsewhere.onnx")
    assert promote(repository / "tiny", tmp_path / "production", "tiny", None) == 1
    copy = tmp_path / "production" / "tiny" / "1" / "model.onnx"
    assert not copy.is_symlink()
    assert copy.read_bytes() == (tmp_path / "elsewhere.onnx").read_bytes()
    assert read_config(tmp_path / "production" / "tiny" / "1" / "config.pbtxt").version_policy.specific.versions == [1]


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, b"not an onnx file", b"\x3a\x05abc"])
def test_what_is_no_onnx_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(ValueError, match="empty|no protobuf|no graph|cut off"):
        external_files(tmp_path / "model.onnx")
