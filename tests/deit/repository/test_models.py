"""What a version is and runs with: its own configuration or, while it is served, the model's."""

import hashlib
from pathlib import Path

import pytest

from deit.errors import RepositoryError
from deit.repository.config import config_text
from deit.repository.doctor import examine_model
from deit.repository.models import ModelVersion, find_model, model_names, read_served, read_version
from deit.repository.publishing import serve_version
from tests.deit.repository.conftest import change
from tests.deit.repository.test_publishing import LABELS, config, graph, publish_tiny


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Three versions with batches of at most 1, 2 and 3 images, of which the last is served."""
    for number in (1, 2, 3):
        publish_tiny(tmp_path, graph(b"%d" % number), configuration=config(max_batch_size=number))
    return tmp_path / "tiny"


def is_whole(version: ModelVersion, number: int) -> bool:
    """The version's graph and configuration belong together."""
    return (version.number, version.config.max_batch_size) == (number, number) and (
        version.file.read_bytes() == graph(b"%d" % number)
    )


def test_a_version_is_read_with_its_own_configuration_whichever_is_served(model: Path) -> None:
    for served in (3, 1, 2):
        serve_version(model.parent, "tiny", served)
        assert is_whole(read_version(model), served)
        for number in (1, 2, 3):
            assert is_whole(read_version(model, number), number)


def test_a_version_has_labels_preprocessing_and_a_digest(model: Path) -> None:
    version = read_version(model)
    assert version.labels == LABELS
    assert version.preprocessing.image_size == 16
    assert version.digest == hashlib.sha256(graph(b"3")).hexdigest()
    assert (version.engine, version.precision, version.provenance, version.verification) == (
        *("onnxruntime", "unknown"),
        *(None, {}),
    )
    assert config_text(version.config, [3]) == (model / "config.pbtxt").read_text()  # reading adds nothing to it


def test_what_is_edited_in_the_models_configuration_holds_for_the_version_that_is_served(model: Path) -> None:
    change(model / "config.pbtxt", "max_batch_size: 3", "max_batch_size: 30")
    assert read_version(model).config.max_batch_size == 30
    assert is_whole(read_version(model, 2), 2)


def test_a_version_without_a_configuration_is_read_only_while_it_is_served(model: Path) -> None:
    """As in a repository that was made by hand: the only configuration is that of the served version."""
    for number in (1, 3):
        (model / str(number) / "config.pbtxt").unlink()
    assert is_whole(read_version(model), 3)
    with pytest.raises(RepositoryError, match=r"version 1 of .*tiny has no config.pbtxt of its own"):
        read_version(model, 1)


def test_each_of_several_served_versions_is_read_with_its_own_configuration(model: Path) -> None:
    change(model / "config.pbtxt", "specific {\n    versions: 3\n  }", "all {\n  }")
    for number in (1, 2, 3):
        assert is_whole(read_version(model, number), number)
    (finding,) = examine_model(model)
    assert "was published with version 3, so the gateway does not serve version 1, 2: `deit models rollback" in finding


@pytest.mark.parametrize(
    ("policy", "served"),
    [
        ("all {}", (1, 2, 3)),
        ("latest { num_versions: 2 }", (2, 3)),
        ("latest {}", (3,)),
        ("specific { versions: [1, 2, 9] }", (1, 2)),
        ("specific { versions: [9] }", ()),
        ("", (3,)),
    ],
)
def test_the_version_policy_chooses_as_triton_does(model: Path, policy: str, served: tuple[int, ...]) -> None:
    change(model / "config.pbtxt", "specific {\n    versions: 3\n  }", policy)
    (model / "07").mkdir()  # Triton leaves out numbers that start with 0
    assert read_served(model)[1] == served


def test_a_model_that_serves_no_version_is_refused_with_what_it_asks_for(model: Path) -> None:
    change(model / "config.pbtxt", "versions: 3", "versions: 9")
    with pytest.raises(RepositoryError, match=r"serves no version: config.pbtxt asks for 9, there are: 1, 2, 3"):
        read_version(model)


def test_an_unknown_model_is_refused_with_the_models_there_are(model: Path) -> None:
    with pytest.raises(RepositoryError, match="has no model 'zebra'; it has: tiny"):
        find_model(model.parent, "zebra")


@pytest.mark.parametrize(
    ("folder", "finding"),
    [("a b", "is not a model's name"), ("half", "the model half in .* has no config.pbtxt")],
)
def test_a_folder_that_triton_cannot_load_is_named_before_it_starts(model: Path, folder: str, finding: str) -> None:
    assert model_names(model.parent) == ["tiny"]
    (model.parent / ".hidden").mkdir()
    (model.parent / folder).mkdir()
    with pytest.raises(RepositoryError, match=finding):
        model_names(model.parent)
