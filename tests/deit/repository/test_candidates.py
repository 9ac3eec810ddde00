"""`deit models shadow` and `deit models canary`: what a candidate changes in a repository, and what it does not."""

import logging
import re
import shutil
from pathlib import Path

import pytest

from deit.candidate import CandidateModel
from deit.repository.config import config_text, read_config
from deit.repository.models import candidate_of, read_loaded, read_served, read_version
from deit.repository.publishing import promote
from tests.deit.repository.conftest import Models, change


@pytest.fixture
def production(repository: Path, tmp_path: Path) -> Path:
    """`tiny` with versions 1 to 3, of which 2 is served, and `large` with one version."""
    there = tmp_path / "production"
    for _ in range(3):
        promote(repository / "tiny", there, "tiny")
    promote(repository / "tiny", there, "large")
    config = there / "tiny" / "2" / "config.pbtxt"
    (there / "tiny" / "config.pbtxt").write_text(config.read_text())
    return there


def tried(repository: Path, name: str = "tiny") -> CandidateModel | None:
    return candidate_of(repository / name, read_served(repository / name)[0])


@pytest.mark.parametrize("mode", ["shadow", "canary"])
def test_another_model_is_tried_and_no_more(production: Path, models: Models, mode: str) -> None:
    run = models(production)
    before = (production / "tiny" / "config.pbtxt").read_text()
    assert f"tiny: {mode} large with 5 %" in run(mode, "tiny", "--model", "large", "--percent", 5)
    assert tried(production) == CandidateModel(mode=mode, percent=5, model="large")
    assert read_loaded(production / "tiny")[1] == (2,)
    assert re.search(rf"tiny +1, 2, 3 +2 .*{mode} large with 5 %", run("list"))
    assert f"{mode} large with 5 %" in run("show", "tiny")
    assert run("doctor") == f"{production} is sound\n"
    assert "no candidate" in run(mode, "tiny", "--percent", 0)
    assert (production / "tiny" / "config.pbtxt").read_text() == before


def test_another_version_is_loaded_with_what_it_expects_of_images_and_the_served_one_stays(
    production: Path, models: Models
) -> None:
    run = models(production)
    change(production / "tiny" / "3" / "config.pbtxt", 'crop_pct\\": 1.0', 'crop_pct\\": 0.5')
    run("canary", "tiny", "--version", 3, "--percent", 12.5)
    assert read_loaded(production / "tiny")[1] == (2, 3)
    assert read_served(production / "tiny")[1] == (2,)
    assert read_version(production / "tiny").number == 2
    candidate = tried(production)
    assert candidate is not None
    assert (candidate.version, candidate.percent) == ("3", 12.5)
    assert candidate.preprocessing == read_version(production / "tiny", 3).preprocessing.to_json()
    assert candidate.preprocessing != read_version(production / "tiny").preprocessing.to_json()
    assert run("doctor") == f"{production} is sound\n"
    run("canary", "tiny", "--version", 1, "--percent", 20)
    assert read_loaded(production / "tiny")[1] == (1, 2)
    run("canary", "tiny", "--percent", 0)
    assert read_loaded(production / "tiny")[1] == (2,)


def test_a_version_that_is_published_or_gone_back_to_ends_what_was_tried(
    production: Path, tmp_path: Path, models: Models, caplog: pytest.LogCaptureFixture
) -> None:
    """And what was tried goes nowhere with a version."""
    run = models(production)
    caplog.set_level(logging.WARNING)
    for end in (("rollback", "tiny", "--version", 3), ("publish", production / "large", "--name", "tiny")):
        (served,) = read_served(production / "tiny")[1]
        run("shadow", "tiny", "--version", 1, "--percent", 50)
        run("publish", production / "tiny", "--name", f"copy{served}")
        assert tried(production, f"copy{served}") is None
        run(*end)
        assert tried(production) is None
        assert "tiny: this ends the shadow tiny version 1 with 50 %" in caplog.text
        caplog.clear()


def test_a_version_that_is_tried_is_not_removed(production: Path, models: Models) -> None:
    run = models(production)
    run("canary", "tiny", "--version", 3, "--percent", 5)
    refusal = run("remove", "tiny", "--version", 3, status=1)
    assert "is its candidate" in refusal
    run("canary", "tiny", "--percent", 0)
    run("remove", "tiny", "--version", 3)


def test_a_model_that_another_one_tries_is_not_removed(production: Path, models: Models) -> None:
    run = models(production)
    run("shadow", "tiny", "--model", "large", "--percent", 5)
    refusal = run("remove", "large", status=1)
    assert "large is the shadow of tiny" in refusal
    assert "models shadow tiny --percent 0" in refusal
    run("shadow", "tiny", "--percent", 0)
    run("remove", "large")


def unsound(production: Path) -> None:
    (production / "tiny" / "3" / "model.onnx").write_bytes(b"\x3a\xff\x01")


def other_settings(production: Path) -> None:
    change(production / "tiny" / "3" / "config.pbtxt", "max_batch_size: 32", "max_batch_size: 4")


def other_classes(production: Path) -> None:
    labels = production / "large" / "labels.txt"
    labels.write_text(labels.read_text().replace("cat", "lion"))


def one_head(production: Path) -> None:
    for file in (production / "large" / "config.pbtxt", production / "large" / "1" / "config.pbtxt"):
        config = read_config(file)
        kept = [output for output in config.output if output.name == "probabilities"]
        del config.output[:]
        config.output.extend(kept)
        file.write_text(config_text(config, [1]))


def newer_version_of_large(production: Path) -> None:
    promote(production / "tiny", production, "large")


@pytest.mark.parametrize(
    ("spoil", "arguments", "finding"),
    [
        (None, (), "--version, or a --model"),
        (None, ("--version", 2), "is served"),
        (None, ("--version", 9), "no version 9"),
        (None, ("--model", "nobody"), "no model 'nobody'"),
        (unsound, ("--version", 3), "not sound"),
        (other_settings, ("--version", 3), "a separate model"),
        (other_classes, ("--model", "large"), "other class names"),
        (one_head, ("--model", "large"), "lacks the output class_probabilities of tiny"),
        (newer_version_of_large, ("--model", "large", "--version", 1), "so Triton does not load it"),
    ],
)
def test_what_cannot_answer_in_the_models_place_is_refused_and_nothing_changes(
    production: Path, models: Models, spoil: object, arguments: tuple[object, ...], finding: str
) -> None:
    if callable(spoil):
        spoil(production)
    before = (production / "tiny" / "config.pbtxt").read_text()
    assert finding in models(production)("canary", "tiny", *arguments, "--percent", 5, status=1)
    assert (production / "tiny" / "config.pbtxt").read_text() == before


def test_a_version_with_other_settings_is_tried_as_a_model_of_its_own(production: Path, models: Models) -> None:
    """By the command that the refusal names."""
    run = models(production)
    other_settings(production)
    run("publish", production / "tiny", "--version", 3, "--name", "tiny_next")
    run("canary", "tiny", "--model", "tiny_next", "--percent", 5)
    assert run("doctor") == f"{production} is sound\n"


def test_doctor_finds_a_candidate_that_is_gone(production: Path, models: Models) -> None:
    run = models(production)
    run("shadow", "tiny", "--model", "large", "--percent", 5)
    shutil.rmtree(production / "large")
    finding = run("doctor", status=1)
    assert "tries large, but" in finding
    assert "shadow tiny --percent 0" in finding


def test_doctor_finds_a_candidate_that_cannot_be_read(production: Path, models: Models) -> None:
    run = models(production)
    run("shadow", "tiny", "--model", "large", "--percent", 5)
    change(production / "tiny" / "config.pbtxt", '\\"percent\\": 5', '\\"percent\\": 500')
    finding = run("doctor", status=1)
    assert "names a candidate that cannot be read: the share is 500 %" in finding
    assert "models rollback" in finding
