"""What `deit models doctor` finds, each fault planted into the model that ships."""

import json
import shutil
from pathlib import Path

import pytest

from deit.repository.doctor import examine
from tests.deit.repository.conftest import Models, change


def no_labels(repository: Path) -> None:
    (repository / "tiny" / "labels.txt").unlink()


def too_few_labels(repository: Path) -> None:
    (repository / "tiny" / "labels.txt").write_text("cat\ndog\n")


def unknown_backend(repository: Path) -> None:
    change(repository / "tiny" / "config.pbtxt", 'backend: "onnxruntime"', 'backend: "caffe2"')


def no_graph(repository: Path) -> None:
    for graph in repository.glob("tiny/*/model.onnx"):
        graph.unlink()


def half_a_graph(repository: Path) -> None:
    for graph in repository.glob("tiny/*/model.onnx"):
        graph.write_bytes(graph.read_bytes()[:100_000])


def empty_graph(repository: Path) -> None:
    for graph in repository.glob("tiny/*/model.onnx"):
        graph.write_bytes(b"")


def no_graph_at_all(repository: Path) -> None:
    for graph in repository.glob("tiny/*/model.onnx"):
        graph.write_bytes(b"not an onnx file")


def weights_outside(repository: Path) -> None:
    import onnx

    for graph in repository.glob("tiny/*/model.onnx"):
        onnx.save(onnx.load(graph), graph, save_as_external_data=True, location="weights.bin", size_threshold=0)


def no_version(repository: Path) -> None:
    for graph in repository.glob("tiny/*/model.onnx"):
        shutil.rmtree(graph.parent)


def another_name(repository: Path) -> None:
    change(repository / "tiny" / "config.pbtxt", 'name: "tiny"', 'name: "small"')


def no_configuration(repository: Path) -> None:
    (repository / "tiny" / "config.pbtxt").write_text("backend = onnxruntime\n")


def no_preprocessing(repository: Path) -> None:
    change(repository / "tiny" / "config.pbtxt", 'key: "preprocessing"', 'key: "preparing"')


def what_a_killed_writer_left(repository: Path) -> None:
    (repository.parent / ".models.publishing").mkdir()


@pytest.mark.parametrize(
    ("fault", "finding"),
    [
        (no_labels, "labels.txt does not name the classes"),
        (too_few_labels, "names 2 classes, but the model has [10]"),
        (unknown_backend, "asks for the backend 'caffe2'; known are onnxruntime, openvino, tensorrt"),
        (no_graph, "model.onnx is missing"),
        (half_a_graph, "model.onnx is cut off, or not an ONNX file"),
        (empty_graph, "model.onnx is empty"),
        (no_graph_at_all, "model.onnx is cut off, or not an ONNX file"),
        (weights_outside, "keeps weights in other files"),
        (no_version, "serves no version"),
        (another_name, "names the model 'small'"),
        (no_configuration, "is not a configuration that Triton reads"),
        (no_preprocessing, "does not say how to preprocess an image"),
        (what_a_killed_writer_left, "was left by a writer that was killed"),
    ],
)
def test_doctor_names_what_is_wrong_and_only_that(repository: Path, fault: object, finding: str) -> None:
    assert examine(repository) == []
    fault(repository)
    (found,) = examine(repository)
    assert finding in found


def test_doctor_compares_a_plan_with_the_tensorrt_that_will_load_it(repository: Path, models: Models) -> None:
    change(repository / "tiny" / "config.pbtxt", 'backend: "onnxruntime"', 'backend: "tensorrt"')
    change(
        repository / "tiny" / "config.pbtxt",
        'default_model_filename: "model.onnx"',
        'default_model_filename: "model.plan"',
    )
    (version,) = (graph.parent for graph in repository.glob("tiny/*/model.onnx"))
    (version / "model.plan").write_bytes(b"plan")
    (found,) = examine(repository)
    assert "has no fingerprint.json" in found
    (version / "fingerprint.json").write_text(json.dumps({"machine": {"tensorrt": "10.13.0"}}))
    assert examine(repository, tensorrt="10.13.0.35") == []
    (found,) = examine(repository, tensorrt="11.1.0")
    assert "was built with TensorRT 10.13.0, and TensorRT 11.1.0 will load it" in found
    assert found in models(repository)("doctor", "--tensorrt", "11.1.0", status=1)


def test_doctor_says_that_an_engine_is_missing_where_deit_serve_would_start_it(
    repository: Path, models: Models
) -> None:
    change(repository / "tiny" / "config.pbtxt", 'backend: "onnxruntime"', 'backend: "openvino"')
    said = models(repository)("doctor", status=1)
    assert said.startswith("version 1 of tiny runs on openvino, which the Triton that `deit serve` starts here lacks")


def test_an_engine_that_is_installed_is_not_reported(repository: Path) -> None:
    change(repository / "tiny" / "config.pbtxt", 'backend: "onnxruntime"', 'backend: "openvino"')
    assert examine(repository) == []
