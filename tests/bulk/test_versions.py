"""A job answers as the server does with the same version, whichever is served and whichever is asked for."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto, helper, numpy_helper

from bulk.model import Session, read_model
from bulk.sources import find_parts
from bulk.steps import Work, classify, decode
from deit.errors import RepositoryError
from deit.model import IMAGES, PREPROCESSING_PARAMETER, VERSION_PARAMETER
from deit.repository.config import config_text
from deit.repository.models import read_version
from deit.repository.publishing import publish, serve_version
from tests.conftest import REPOSITORY_ROOT
from tests.serving.conftest import DeitServe, eventually, running

NAME, VERSIONS = "cifar", (1, 2, 3)
COUNT = 48

DEIT = (sys.executable, "-m", "deit")

# The same graph in the same engine; batches of other sizes move the last bits. Versions differ by far more.
SAME = 1e-4

Answers = np.ndarray


@pytest.fixture(scope="module")
def images(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real pictures of CIFAR-10 with their labels."""
    file = tmp_path_factory.mktemp("images") / "cifar10.parquet"
    pq.write_table(pq.read_table(shared_data / "cifar10" / "test.parquet").slice(0, COUNT), file)
    return file


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that ships, then with another crop, then reading larger images, of which it takes the centre.

    A resolution is part of a model's interface, so the last version is not published but put there by hand.
    """
    repository = tmp_path_factory.mktemp("models")
    shipped = read_version(REPOSITORY_ROOT / "model_repository" / "deit_cifar10")
    for number, crop_pct, image_size in ((1, 1.0, 96), (2, 0.5, 96), (3, 1.0, 112)):
        graph = onnx.load(shipped.file)
        config = type(shipped.config).FromString(shipped.config.SerializeToString())
        preprocessing = replace(shipped.preprocessing, crop_pct=crop_pct, image_size=image_size)
        config.parameters[PREPROCESSING_PARAMETER].string_value = preprocessing.to_json()
        if image_size == 96:
            fill = partial(save, graph)
            assert publish(repository, NAME, config=config, label_names=shipped.labels, fill=fill) == number
            continue
        read_the_centre(graph, image_size)
        config.input[0].dims[:] = [image_size, image_size, 3]
        config.name = NAME
        config.parameters[VERSION_PARAMETER].string_value = str(number)
        del config.model_warmup[:]
        (repository / NAME / str(number)).mkdir()
        save(graph, repository / NAME / str(number))
        (repository / NAME / str(number) / "config.pbtxt").write_text(config_text(config, [number]))
    return repository


def save(graph: onnx.ModelProto, folder: Path) -> None:
    onnx.save(graph, folder / "model.onnx")


def read_the_centre(model: onnx.ModelProto, image_size: int) -> None:
    """Let the graph take larger images and look at their central 96 pixels."""
    graph, margin = model.graph, (image_size - 96) // 2
    for node in graph.node:
        node.input[:] = ["centre" if name == IMAGES else name for name in node.input]
    bounds = {"starts": [margin, margin], "ends": [margin + 96] * 2, "axes": [1, 2]}
    graph.initializer.extend(numpy_helper.from_array(np.array(value), name) for name, value in bounds.items())
    graph.node.insert(0, helper.make_node("Slice", [IMAGES, *bounds], ["centre"]))
    graph.input[0].CopyFrom(helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, ["N", image_size, image_size, 3]))


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[DeitServe]:
    with running("--model-repository", repository, "--allow-reload", "--max-wait-s=60") as server:
        yield server.wait_until_ready()


@pytest.fixture(scope="module")
def served(server: DeitServe, repository: Path, images: Path) -> dict[int, Answers]:
    """What the server answers with each version, probabilities by class: (images, classes)."""
    contents = [row["bytes"] for row in pq.read_table(images)["image"].to_pylist()]
    found = {}
    for version in VERSIONS:
        serve_version(repository, NAME, version)
        port = server.url.rpartition(":")[2]
        subprocess.run(
            [sys.executable, "-m", "deit", "models", "reload", "--port", port], check=True, cwd=REPOSITORY_ROOT
        )
        rows = []
        for content in contents:
            answer = asked(server, content)
            assert answer.headers["x-model-version"] == str(version)
            rows.append(
                [each["probability"] for each in sorted(answer.json()["predictions"], key=lambda p: p["index"])]
            )
        found[version] = np.array(rows)
    return found


def asked(server: DeitServe, content: bytes) -> httpx.Response:
    """An answer; on a busy machine a model may count as silent for a moment."""
    answers: list[httpx.Response] = []

    def is_answered() -> bool:
        answers.append(server.post("/classify?top_k=10", content=content))
        return answers[-1].status_code == 200

    eventually(is_answered)
    return answers[-1]


def in_bulk(repository: Path, images: Path, output: Path, version: int | None) -> tuple[str, Answers]:
    """The version that a job ran and its probabilities by class, by what its processes do, in this one."""
    model = read_model(repository, None, version)
    work = Work(images=str(images), output=str(output), model=model, top_k=10, batch_size=16, max_image_pixels=10**6)
    for part in find_parts(str(images), part_images=COUNT):
        classify(work, Session(model.graph, threads=1), decode(work, part))
    return answers(output)


def answers(output: Path) -> tuple[str, Answers]:
    table: pa.Table = pq.read_table(output)
    (version,) = set(table["version"].to_pylist())
    best, probabilities = (np.array(table[name].to_pylist()) for name in ("indices", "probabilities"))
    return version, np.take_along_axis(probabilities, np.argsort(best, axis=1), axis=1)


def test_the_versions_answer_differently(served: dict[int, Answers]) -> None:
    """So that the other tests see a version that got the preprocessing of another."""
    for one, other in ((1, 2), (1, 3), (2, 3)):
        assert np.abs(served[one] - served[other]).max() > 1000 * SAME


@pytest.mark.parametrize("version", VERSIONS)
def test_a_job_answers_as_the_server_does_with_the_version_that_is_served(
    repository: Path, images: Path, served: dict[int, Answers], tmp_path: Path, version: int
) -> None:
    """Also after a rollback, when the newest version is not the one."""
    serve_version(repository, NAME, version)
    found = in_bulk(repository, images, tmp_path / "answers", None)
    assert found[0] == str(version)
    np.testing.assert_allclose(found[1], served[version], atol=SAME)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_job_answers_as_the_server_would_with_the_version_that_is_asked_for(
    repository: Path, images: Path, served: dict[int, Answers], tmp_path: Path, version: int
) -> None:
    serve_version(repository, NAME, VERSIONS[version % 3])
    found = in_bulk(repository, images, tmp_path / "answers", version)
    assert found[0] == str(version)
    np.testing.assert_allclose(found[1], served[version], atol=SAME)


def test_a_version_that_does_not_say_what_it_needs_is_refused(repository: Path, tmp_path: Path) -> None:
    """As in a repository made by hand, whose only configuration is that of the served version."""
    by_hand = tmp_path / "models" / NAME
    by_hand.mkdir(parents=True)
    for file in ("config.pbtxt", "labels.txt"):
        (by_hand / file).write_bytes((repository / NAME / file).read_bytes())
    for version in map(str, VERSIONS):
        (by_hand / version).mkdir()
        (by_hand / version / "model.onnx").symlink_to(repository / NAME / version / "model.onnx")
    number = read_version(repository / NAME).number
    assert read_model(by_hand.parent, None, None) == read_model(repository, None, number)
    with pytest.raises(RepositoryError, match="has no config.pbtxt of its own"):
        read_model(by_hand.parent, None, VERSIONS[number % 3])


@pytest.mark.soak
@pytest.mark.parametrize("version", [None, 3])
def test_the_command_answers_as_the_server_does_after_a_rollback(
    repository: Path, images: Path, served: dict[int, Answers], tmp_path: Path, version: int | None
) -> None:
    serve_version(repository, NAME, 2)
    rollback = [*DEIT, "models", "rollback", NAME, "--repository", str(repository)]
    subprocess.run(rollback, check=True, cwd=REPOSITORY_ROOT)
    job = ["--images", images, "--output", tmp_path / "answers", "--model-repository", repository, "--top-k", 10]
    chosen = [] if version is None else ["--version", version]
    subprocess.run([*DEIT, "classify-dataset", *map(str, [*job, *chosen])], check=True, cwd=REPOSITORY_ROOT)
    found = answers(tmp_path / "answers")
    assert found[0] == str(version or 1)
    np.testing.assert_allclose(found[1], served[version or 1], atol=SAME)
