"""The scripts of training/recipes, with a `deit` and a `python` that note what they were asked."""

import fcntl
import os
import subprocess
from pathlib import Path

import pytest
import typer

from export.command import app as export_app
from studies.comparison import read_comparison
from tests.conftest import REPOSITORY_ROOT
from tests.training.test_preset import parsed

RECIPES = REPOSITORY_ROOT / "training" / "recipes"

NOTING_DEIT = """#!/bin/sh
echo "$@" >> "$NOTES"
[ "$1" = train ] || exit 0
case " $* " in *" --resume "*) exit 0 ;; esac
[ ! -e "$DEIT_TRAIN_RUNS/$3" ] || exit 1    # as deit train refuses a folder that exists
mkdir -p "$DEIT_TRAIN_RUNS/$3"
[ "$3" = "$KILLED_EARLY" ] && : > "$DEIT_TRAIN_RUNS/$3/provenance.json" && exit 1
: > "$DEIT_TRAIN_RUNS/$3/config.json"
[ "$3" != "$KILLED" ]
"""


@pytest.fixture
def noted(tmp_path: Path) -> object:
    """Runs a recipe and gives its exit status and what it asked of `deit` and `python`."""
    deit = tmp_path / "bin" / "deit"
    deit.parent.mkdir()
    deit.write_text(NOTING_DEIT)
    deit.chmod(0o755)
    deit.with_name("python").symlink_to(deit)

    def run(recipe: str, *arguments: str, **environment: str) -> tuple[int, list[str]]:
        notes = tmp_path / "notes"
        notes.write_text("")
        path = {"PATH": f"{deit.parent}:{os.environ['PATH']}", "NOTES": str(notes)}
        defaults = {"DEIT_TRAIN_RUNS": str(tmp_path / "runs"), "KILLED": "", "KILLED_EARLY": ""}
        done = subprocess.run([RECIPES / recipe, *arguments], env={**os.environ, **path, **defaults, **environment})
        return done.returncode, notes.read_text().splitlines()

    return run


@pytest.mark.parametrize("recipe", ["miniature", "vitkd-miniature"])
@pytest.mark.parametrize("given", [False, True])
def test_a_recipe_trains_every_arm_of_its_comparison_with_options_that_exist(
    noted: object, recipe: str, given: bool
) -> None:
    teachers = ("runs/convnet/checkpoint", "runs/transformer/checkpoint") if given else ()
    status, asked = noted(f"{recipe}.sh", "data", *teachers)
    assert status == 0
    *runs, report = asked
    assert report.startswith(f"-m studies.compare {RECIPES}/{recipe}.toml --data data")
    assert len(runs) - (0 if given else 2) == 3 * len(read_comparison(RECIPES / f"{recipe}.toml").arms)
    configs = [parsed(*line.split()[1:]) for line in runs]
    for arm in read_comparison(RECIPES / f"{recipe}.toml").arms:
        of_arm = [config for config in configs if Path(config.name).match(arm.runs)]
        assert sorted(config.seed for config in of_arm) == [0, 1, 2]
        assert len({repr({**config.settings, "name": "", "seed": 0}) for config in of_arm}) == 1
    if given:
        assert {config.teacher for config in configs} == {None, *teachers}


@pytest.mark.parametrize("recipe", ["miniature", "vitkd-miniature"])
def test_one_teacher_of_two_is_refused(noted: object, recipe: str) -> None:
    assert noted(f"{recipe}.sh", "data", "convnet") == (2, [])


def test_the_recipe_of_the_bundled_model_distils_a_convnet_into_deit_ti_and_exports_it(noted: object) -> None:
    status, (first, second, export) = noted("cifar10.sh", "data", "deit.pth", "lite.pth")
    assert status == 0
    teacher, student = (parsed(*line.split()[1:]) for line in (first, second))
    assert (teacher.model, teacher.initial_checkpoint) == ("tf_efficientnet_lite0", "lite.pth")
    assert (student.model, student.initial_checkpoint) == ("deit_tiny_distilled_patch16_224", "deit.pth")
    assert (student.distillation, student.teacher) == ("hard", "runs/cifar10-teacher/checkpoint")
    asked = typer.main.get_command(export_app).make_context("export", export.split()[1:]).params
    assert (str(asked["checkpoint"]), asked["name"]) == ("runs/cifar10-student/checkpoint", "deit_cifar10")
    assert str(asked["repository"]) == "model_repository"


def test_the_gpu_recipe_distils_each_variant_from_one_convnet_and_judges_it(noted: object, tmp_path: Path) -> None:
    status, asked = noted("cifar10-gpu.sh", "data", "weights.pth", VARIANTS="8:96 12:128", STUDENT_OPTIONS="--epochs 5")
    assert status == 0
    teacher, *students = [parsed(*line.split()[1:]) for line in asked if line.startswith("train")]
    assert (teacher.name, teacher.model, teacher.pixel_bank) == ("cifar10-resnet34d", "resnet34d", True)
    runs = tmp_path / "runs"
    assert {(student.name, *student.model_arg, student.image_size) for student in students} == {
        ("cifar10-student-8-96", "depth=8", 96),
        ("cifar10-student-12-128", "depth=12", 128),
    }
    for student in students:
        assert (student.teacher, student.distillation) == (f"{runs}/cifar10-resnet34d/checkpoint", "hard")
        assert (student.initial_checkpoint, student.epochs) == ("weights.pth", 5)
    evaluated = [line.split()[4] for line in asked if line.startswith("evaluate")]
    assert evaluated == [f"{runs}/cifar10-student-{variant}/checkpoint" for variant in ("8-96", "12-128")]


def test_a_gpu_recipe_whose_student_failed_fails_and_judges_none(noted: object) -> None:
    status, asked = noted("cifar10-gpu.sh", "data", "weights.pth", KILLED="cifar10-student-8-96")
    assert status != 0
    assert not any(line.startswith("evaluate") for line in asked)
    status, again = noted("cifar10-gpu.sh", "data", "weights.pth")
    assert status == 0
    assert all(line.endswith("--resume") for line in again if line.startswith("train"))


@pytest.mark.parametrize("killed", ["KILLED", "KILLED_EARLY"])
def test_a_recipe_that_was_stopped_goes_on_where_it_was(noted: object, killed: str) -> None:
    status, asked = noted("vitkd-miniature.sh", "data", **{killed: "vitkd-nkd-s1"})
    assert status != 0
    assert not any("studies.compare" in line for line in asked)
    status, again = noted("vitkd-miniature.sh", "data")
    assert status == 0
    first = {line.split()[2] for line in asked if line.startswith("train")}
    for line in again[:-1]:
        began = line.split()[2] in first and not (killed == "KILLED_EARLY" and "nkd-s1" in line)
        assert line.endswith("--resume") == began, line


def test_a_run_that_is_still_trained_is_not_started_again(noted: object, tmp_path: Path) -> None:
    """As when a recipe was killed and its training was not."""
    (tmp_path / "runs").mkdir()
    with (tmp_path / "runs" / ".miniature-none-s0.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, asked = noted("miniature.sh", "data", "convnet", "transformer")
    assert status != 0
    assert asked == []
