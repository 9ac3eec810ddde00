"""What Triton is shown of a model repository."""

import pytest

from deit.errors import RepositoryError
from deit.repository.models import model_names
from serving.embedded.snapshot import Snapshot
from tests.serving.conftest import write_model


@pytest.fixture
def model(tmp_path):
    write_model(tmp_path / "models" / "m", versions=3)
    return tmp_path / "models" / "m"


@pytest.fixture
def snapshot(model, tmp_path):
    (tmp_path / "shown").mkdir()
    return Snapshot(model.parent, tmp_path / "shown")


def say(model, policy):
    config = model / "config.pbtxt"
    config.write_text(config.read_text().replace("latest { num_versions: 3 }", policy))


def test_it_offers_the_versions_that_the_policy_chooses(model, snapshot):
    say(model, "latest { num_versions: 2 }")
    assert snapshot.offers()["m"].versions == (2, 3)


def test_it_shows_versions_labels_and_a_configuration_that_names_them(model, snapshot):
    offer = snapshot.offers()["m"]
    snapshot.show("m", offer, (2, 3))
    snapshot.show("m", offer, (1, 3))
    shown = snapshot.folder / "m"
    assert {entry.name for entry in shown.iterdir()} == {"1", "3", "labels.txt", "config.pbtxt"}
    assert (shown / "1" / "model.onnx").read_bytes() == (model / "1" / "model.onnx").read_bytes()
    assert snapshot.folder.joinpath("m", "config.pbtxt").read_text().count("versions:") == 2
    assert model_names(snapshot.folder) == ["m"]


def test_what_is_written_later_is_not_shown(model, snapshot):
    snapshot.show("m", snapshot.offers()["m"], (3,))
    (model / "config.pbtxt").write_text("input [")
    (model / "4").mkdir()
    shown = snapshot.folder / "m"
    assert {entry.name for entry in shown.iterdir()} == {"3", "labels.txt", "config.pbtxt"}
    assert "input [" not in (shown / "config.pbtxt").read_text()


def test_other_contents_are_another_offer(model, snapshot):
    before = snapshot.offers()["m"]
    assert snapshot.offers()["m"] == before
    for file in (model / "3" / "model.onnx", model / "labels.txt"):
        file.write_bytes(file.read_bytes() + b" ")
        assert snapshot.offers()["m"] != before
        before = snapshot.offers()["m"]


@pytest.mark.parametrize(
    ("policy", "reason"), [("specific { versions: [9] }", "serves no version"), ("specific [", "not a configuration")]
)
def test_what_cannot_be_served_is_named(model, snapshot, policy, reason):
    say(model, policy)
    with pytest.raises(RepositoryError, match=f"m.*{reason}"):
        snapshot.offers()
