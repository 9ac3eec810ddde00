"""`deit models` as its users run it."""

import re
import shlex
from pathlib import Path

import pytest

from deit.repository.models import read_served, read_version, version_numbers
from deit.repository.publishing import promote
from tests.deit.repository.conftest import Deit, Models, change


@pytest.fixture
def production(repository: Path, tmp_path: Path) -> Path:
    """Three versions of `tiny`, of which the last is served, in a folder whose name a shell must quote."""
    for _ in range(3):
        promote(repository / "tiny", tmp_path / "in production", "tiny")
    return tmp_path / "in production"


def test_a_model_goes_from_staging_to_production_and_back_again(
    repository: Path, tmp_path: Path, models: Models
) -> None:
    """Publish twice, list, roll back, remove: the life of a model."""
    production = tmp_path / "production"
    run = models(production)
    for number in (1, 2):
        assert run("publish", repository / "tiny").strip() == str(production / "tiny" / str(number))
    assert re.search(r"tiny +1, 2 +2 +fp32 +onnxruntime", run("list"))
    assert "version 1 will be served" in run("rollback", "tiny")
    shown = run("show", "tiny")
    assert "1 (served)" in shown
    assert "checkpoint_sha256" in shown
    assert read_version(production / "tiny").digest in shown
    assert "2 (served: 1)" in run("show", "tiny", "--version", 2)
    run("remove", "tiny", "--version", 2)
    assert run("doctor") == f"{production} is sound\n"
    run("remove", "tiny")
    assert "has no model 'tiny'" in run("show", "tiny", status=1)


def test_a_version_is_published_with_what_it_runs_with(production: Path, tmp_path: Path, models: Models) -> None:
    """Also one that is not served, whose configuration lies in its folder."""
    change(production / "tiny" / "1" / "config.pbtxt", "max_batch_size: 32", "max_batch_size: 4")
    models(tmp_path / "elsewhere")("publish", production / "tiny", "--version", 1, "--name", "small")
    published = read_version(tmp_path / "elsewhere" / "small")
    assert (published.config.name, published.config.max_batch_size) == ("small", 4)


def hint(output: str) -> list[str]:
    """The words of the first command of `deit models` that a message names."""
    match = re.search(r"`deit (models [^`]+)`", output)
    assert match, output
    return shlex.split(match[1])


def cut_off_graph(production: Path) -> None:
    (production / "tiny" / "3" / "model.onnx").write_bytes(b"\x3a\xff\x01")


def deleted_version(production: Path) -> None:
    (production / "tiny" / "3").rename(production.parent / "3")


def broken_configuration(production: Path) -> None:
    (production / "tiny" / "config.pbtxt").write_text("backend = onnxruntime")


def served_by_hand(production: Path) -> None:
    """As somebody rolls back who does not know `rollback`: version 1 with the preprocessing of version 3."""
    for file in ("config.pbtxt", "3/config.pbtxt"):
        change(production / "tiny" / file, r"\"crop_pct\": 1.0", r"\"crop_pct\": 0.5")
    change(production / "tiny" / "config.pbtxt", "versions: 3", "versions: 1")


@pytest.mark.parametrize(
    ("fault", "served"),
    [(cut_off_graph, 2), (deleted_version, 2), (broken_configuration, 3), (served_by_hand, 1)],
)
def test_the_command_that_doctor_names_repairs_the_repository(
    production: Path, fault: object, served: int, models: Models, deit: Deit
) -> None:
    fault(production)
    deit(*hint(models(production)("doctor", status=1)))
    assert models(production)("doctor") == f"{production} is sound\n"
    assert read_served(production / "tiny")[1] == (served,)


def test_commands_that_refusals_name_work_as_they_are_printed(production: Path, models: Models, deit: Deit) -> None:
    run = models(production)
    refused = run("remove", "tiny", "--version", 3, status=1)
    assert "version 3 of tiny is served" in refused
    deit(*hint(refused))
    assert read_served(production / "tiny")[1] == (2,)
    run("remove", "tiny", "--version", 3)
    run("rollback", "tiny")
    refused = run("rollback", "tiny", status=1)
    assert "no version before the served one (1)" in refused
    deit(*hint(refused))
    assert read_served(production / "tiny")[1] == (2,)
    run("remove", "tiny", "--version", 1)
    refused = run("remove", "tiny", "--version", 2, status=1)
    deit(*hint(refused))
    assert not (production / "tiny").exists()


def test_a_version_that_is_not_sound_is_not_rolled_back_to(production: Path, models: Models) -> None:
    cut_off_graph(production)
    run = models(production)
    run("rollback", "tiny")
    refused = run("rollback", "tiny", "--version", 3, status=1)
    assert "version 3 of tiny is not sound, nothing was changed" in refused
    assert "model.onnx is cut off" in refused
    assert read_served(production / "tiny")[1] == (2,)


def test_versions_that_are_not_there_are_refused_by_name(production: Path, models: Models) -> None:
    run = models(production)
    for command in ("show", "rollback", "remove"):
        for number in (0, 9):
            assert f"has no version {number}; it has: 1, 2, 3" in run(command, "tiny", "--version", number, status=1)
    assert version_numbers(production / "tiny") == [1, 2, 3]
