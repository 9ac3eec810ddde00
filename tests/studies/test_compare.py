import json
import math
import re
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmark.results import read
from deit.errors import DataError
from studies.compare import app
from studies.comparison import PairedDifference, TrainingRun, find_runs, image_chance, read_comparison
from tests.training.test_images import image_folder
from tests.training.test_loop import config
from training.loop import train

SEEDS = (3, 5)
PLAIN = {"model": "deit_tiny_patch16_224", "epochs": 1, "warmup_epochs": 0}
COMPARISON = """
title = "Colours"
about = "Small and quick."
paper = "| ImageNet |\\n|---|"
arm = [{ name = "none", runs = "none-s*" }, { name = "token", runs = "token-s*" }]
claim = [
    { left = "token", right = "none", paper = "two points." },
    { left = "token:joint", right = "token:class" },
    { left = "token:distillation", right = "token:class", measure = "teacher" },
]
"""


@pytest.fixture(scope="module")
def runs(colours_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms over two seeds; the baseline's first run teaches the other arm, which starts at another rate."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in SEEDS:
        train(config(colours_data, folder, name=f"none-s{seed}", seed=seed, **PLAIN))
    taught = {"distillation": "hard", "teacher": str(folder / "none-s3" / "checkpoint")}
    for seed in SEEDS:
        settings = {"seed": seed, "epochs": 2, "learning_rate": 1e-2, **taught}
        train(config(colours_data, folder, name=f"token-s{seed}", **settings))
    return folder


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    path = tmp_path / "colours.toml"
    path.write_text(COMPARISON)
    return path


def rows_of(report: str, heading: str) -> dict[str, list[str]]:
    """The cells of the table below a heading, by the first."""
    table = report.partition(f"## {heading}")[2].partition("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return {f"{row[0]} {row[1]}" if heading == "Top-1" else row[0]: row[1:] for row in cells[2:]}


def test_the_report_tells_what_the_runs_logged(
    colours_data: Path, runs: Path, comparison: Path, tmp_path: Path
) -> None:
    output = tmp_path / "docs" / "report.md"
    arguments = [str(comparison), "--data", str(colours_data), "--runs", str(runs), "--output", str(output)]
    arguments += ["--results", str(tmp_path / "results")]
    done = CliRunner().invoke(app, [*arguments, "--workers", "0", "--device", "cpu"])
    assert done.exit_code == 0, done.output
    report = output.read_text()

    logged = {
        (arm, seed): TrainingRun(runs / f"{arm}-s{seed}").metrics[-1] for arm in ("none", "token") for seed in SEEDS
    }
    accuracy = rows_of(report, "Top-1")
    for arm, readout in (("none", "class"), ("token", "class"), ("token", "distillation"), ("token", "joint")):
        row_of_arm = accuracy[f"{arm} {readout}"]
        values = [100 * logged[arm, seed][f"test_{readout}_top1"] for seed in SEEDS]
        assert [float(cell) for cell in row_of_arm[1:3]] == pytest.approx(values, abs=0.01)
        assert float(row_of_arm[3]) == pytest.approx(sum(values) / 2, abs=0.01)
    assert "![Points above none](report.svg)" in report
    picture = output.with_suffix(".svg").read_text()
    assert all(each in picture for each in ("points of top-1 above none", ">token<"))
    gains = [100 * (logged["token", s]["test_joint_top1"] - logged["none", s]["test_class_top1"]) for s in SEEDS]
    paired = rows_of(report, "Points above none, seed by seed")["token"]
    assert [float(cell) for cell in paired[:2]] == pytest.approx(gains, abs=0.01)

    assert set(rows_of(report, "Settings that differ between arms")) == {
        *("`distillation`", "`epochs`", "`warmup_epochs`", "`learning_rate`", "`model`", "`teacher`")
    }
    matrix = list(rows_of(report, "Disagreement: share of the images, mean over seeds").items())
    assert matrix[0][0] == "1 label"
    assert all(row[place] == "0.000" for place, (_, row) in enumerate(matrix))
    # the baseline of seed 3 is the teacher, so that it decides otherwise in the other seed alone
    teacher, baseline = matrix[1], matrix[2]
    assert baseline[0] == "3 none (class)"
    assert float(teacher[1][2]) == float(baseline[1][1])
    cosines = rows_of(report, "Cosine of class and distillation token")
    assert {"learned tokens", "after block 2", "rows of the heads"} <= cosines.keys()
    assert report.count("- **not resolved**: ") == 3  # by two seeds
    assert report.count("points on average over 2 seeds, 95 % interval") == 3
    assert "The paper: two points." in report
    assert "token (distillation) agrees with its teacher more often than token (class)" in report

    records = read(list((tmp_path / "results").iterdir()))  # the same figures, for the report of the benchmark
    top1 = {record.model: record.figures["top1"] for record in records if record.kind == "strategy"}
    teacher = f"teacher {runs / 'none-s3' / 'checkpoint'}"
    assert set(top1) == {
        teacher,
        "none, class",
        "token, class",
        "token, distillation",
        "token, joint",
        "token, joint_logit",
    }
    logged = [TrainingRun(runs / f"token-s{seed}").metrics[-1]["test_joint_top1"] for seed in SEEDS]
    joint = top1["token, joint"]
    assert (joint.value, joint.lowest, joint.highest, joint.runs) == pytest.approx(
        (sum(logged) / 2, min(logged), max(logged), 2), abs=1e-4
    )
    differing = {(record.model, record.conditions["other"]) for record in records if record.kind == "disagreement"}
    assert len(differing) == 15  # of six deciders each pair once
    assert all(0 <= record.figures["disagreement"].value <= 1 for record in records if record.kind == "disagreement")


def test_the_verdict_follows_from_the_interval_of_paired_differences() -> None:
    # 4.303 is the 0.975 quantile of two degrees of freedom: 0.02 - 4.303 x 0.005 / sqrt(3) is above zero
    sure = PairedDifference(differences=(0.015, 0.020, 0.025))
    assert sure.half_width == pytest.approx(4.303 * 0.005 / math.sqrt(3), rel=1e-3)
    assert sure.verdict(None) == sure.verdict(0.01) == "reproduced"
    assert sure.verdict(0.2) == "not resolved"  # the test set may have caused it
    assert PairedDifference(differences=(-0.015, -0.020, -0.025)).verdict(0.01) == "contradicted"
    assert PairedDifference(differences=(0.00, 0.020, 0.040)).verdict(0.01) == "not resolved"


@pytest.mark.parametrize("differences", [(0.5,), (-0.01, -0.01)])
def test_fewer_than_three_seeds_resolve_nothing(differences: tuple[float, ...]) -> None:
    assert PairedDifference(differences=differences).verdict(0.0) == "not resolved"


@pytest.mark.parametrize(("sign", "verdict"), [(1, "reproduced"), (0, "contradicted"), (-1, "contradicted")])
def test_the_verdict_is_on_what_the_paper_has(sign: Literal[-1, 0, 1], verdict: str) -> None:
    assert PairedDifference(differences=(0.015, 0.020, 0.025)).verdict(0.01, sign) == verdict
    assert PairedDifference(differences=(0.00, 0.020, 0.040)).verdict(0.01, sign) == "not resolved"


def test_more_seeds_on_the_same_images_do_not_make_the_images_more() -> None:
    random = np.random.default_rng(0)
    left, right = random.random(400) < 0.60, random.random(400) < 0.53
    once = image_chance(left[None], right[None])
    assert 0.01 < once < 0.5
    assert image_chance(np.stack([left] * 3), np.stack([right] * 3)) == pytest.approx(once)
    assert image_chance(right[None], left[None]) == pytest.approx(once)
    assert image_chance(left[None], left[None]) == 1


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ('runs = "token-s*"', 'runs = "absent-s*"', "the arm token has no runs"),
        ('runs = "token-s*"', 'runs = "token-s3"', r"the arm token has the seeds \[3\], none has \[3, 5\]"),
        ('runs = "token-s*"', 'runs = "*-s*"', "are runs of one arm, but differ in distillation"),
        ('left = "token"', 'left = "tokens"', "a claim names the arm 'tokens', which is none"),
        ('measure = "teacher"', 'measure = "top5"', "a claim's measure is 'top5': choose from top1, teacher"),
        ('measure = "teacher"', 'sign = "up"', "a claim's sign is 'up': choose from -1, 0, 1"),
        ('title = "Colours"', "", "is not a comparison: 'title'"),
        ('title = "Colours"', 'title = "Colours"\ncolour = 1', "'colour' is not known"),
    ],
)
def test_runs_that_cannot_be_compared_are_named(runs: Path, comparison: Path, old: str, new: str, finding: str) -> None:
    comparison.write_text(COMPARISON.replace(old, new, 1))
    with pytest.raises(DataError, match=finding):
        find_runs(read_comparison(comparison), runs)


def test_a_run_that_is_not_finished_is_named(colours_data: Path, comparison: Path, tmp_path: Path) -> None:
    for arm in ("none", "token"):
        train(config(colours_data, tmp_path, name=f"{arm}-s0", **PLAIN))
    settings = json.loads((tmp_path / "token-s0" / "config.json").read_text())
    (tmp_path / "token-s0" / "config.json").write_text(json.dumps({**settings, "epochs": 9}))
    with pytest.raises(DataError, match=r"token-s0 has done 1 of 9 epochs: go on with --resume"):
        find_runs(read_comparison(comparison), tmp_path)


def test_other_test_images_are_refused(runs: Path, comparison: Path, tmp_path: Path) -> None:
    arguments = ["--data", image_folder(tmp_path / "other"), "--runs", runs, "--output", tmp_path / "report.md"]
    done = CliRunner().invoke(app, [str(comparison), *map(str, arguments), "--workers", "0", "--device", "cpu"])
    assert isinstance(done.exception, DataError)
    assert re.search(r"does not hold the images that .*none-s3 was tested on", str(done.exception))
