"""Arms of runs over the same seeds, and what their paired differences support.

A comparison is a TOML file: a title, arms with the names of their runs (a pattern), claims such as "this arm beats that
one", and what a paper has to say of the same matter. Equal seeds give two arms the same order of the images and the
same mixing, and arms of one architecture the same start, so an arm is compared with another seed by seed.
"""

import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student
from scipy.stats import ttest_1samp

from deit.checkpoint import read_checkpoint_config
from deit.errors import DataError
from training.curves import read_metrics

Measure = Literal["top1", "teacher"]
Sign = Literal[-1, 0, 1]
Hits = npt.NDArray[np.bool_]

LEAST_SEEDS = 3
"""Fewer say too little about the spread."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Runs that differ in their seeds alone. `runs` is a pattern of their names."""

    name: str
    runs: str


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the paper says of `left` and `right`, each an arm's name or arm:read-out.

    Attributes:
        sign: 1 if the paper has left above right, 0 if it has both equal, -1 if it has left below.
        measure: top1, or teacher: the share of the images decided as the arm's teacher does.
        paper: what the paper has for it, as text.
    """

    left: str
    right: str
    measure: Measure = "top1"
    paper: str = ""
    sign: Sign = 1

    def __post_init__(self) -> None:
        for name, value, known in (
            ("sign", self.sign, get_args(Sign)),
            ("measure", self.measure, get_args(Measure)),
        ):
            if value not in known:
                raise ValueError(f"a claim's {name} is {value!r}: choose from {', '.join(map(str, known))}")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What to compare. The first arm is the one that the others are compared with."""

    title: str
    about: str
    paper: str
    arms: tuple[Arm, ...]
    claims: tuple[Claim, ...]


@dataclass(frozen=True)
class TrainingRun:
    """A finished run's folder."""

    folder: Path

    @cached_property
    def settings(self) -> dict[str, Any]:
        return dict(_read_json(self.folder / "config.json"))

    @cached_property
    def provenance(self) -> dict[str, Any]:
        return dict(_read_json(self.folder / "provenance.json"))

    @cached_property
    def metrics(self) -> list[dict[str, float]]:
        return read_metrics(self.folder / "metrics.jsonl")

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"


Runs = dict[str, dict[int, TrainingRun]]
"""Runs by arm and seed; every arm has the same seeds."""


def read_comparison(path: Path) -> Comparison:
    """Raises DataError when the file is not a comparison."""
    try:
        content = tomllib.loads(path.read_text())
        comparison = Comparison(
            title=content.pop("title"),
            about=content.pop("about", "").strip(),
            paper=content.pop("paper", "").strip(),
            arms=tuple(Arm(**arm) for arm in content.pop("arm")),
            claims=tuple(Claim(**claim) for claim in content.pop("claim", [])),
        )
        if content:
            raise ValueError(f"{next(iter(content))!r} is not known")
        names = {arm.name for arm in comparison.arms}
        for claim in comparison.claims:
            for side in (claim.left, claim.right):
                if side.partition(":")[0] not in names:
                    raise ValueError(f"a claim names the arm {side!r}, which is none")
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is not a comparison: {error}. It needs a title and [[arm]] tables with name and runs; "
            "training/recipes/miniature.toml is one"
        ) from error
    return comparison


def find_runs(comparison: Comparison, folder: Path) -> Runs:
    """The runs of each arm below `folder`, by seed.

    Raises:
        DataError: an arm has no runs, or not the seeds of the others; a run is not finished; the runs of an arm differ
            in more than the seed; arms were tested on other images or views of them.
    """
    arms: Runs = {}
    for arm in comparison.arms:
        runs = [TrainingRun(path.parent) for path in sorted(folder.glob(f"{arm.runs}/config.json"))]
        if not runs:
            raise DataError(f"the arm {arm.name} has no runs: {folder}/{arm.runs} does not exist")
        for run in runs:
            epochs = len(run.metrics) if (run.folder / "metrics.jsonl").is_file() else 0
            if epochs < run.settings["epochs"]:
                raise DataError(
                    f"{run.folder} has done {epochs} of {run.settings['epochs']} epochs: go on with --resume"
                )
            if other := _differences(run.settings, runs[0].settings):
                raise DataError(f"{run.folder} and {runs[0].folder} are runs of one arm, but differ in {other[0]}")
        by_seed = {int(run.settings["seed"]): run for run in runs}
        if len(by_seed) < len(runs):
            raise DataError(f"the arm {arm.name} has two runs of one seed below {folder}/{arm.runs}")
        arms[arm.name] = dict(sorted(by_seed.items()))
    first_name, first = next(iter(arms.items()))
    for name, by_seed in arms.items():
        if by_seed.keys() != first.keys():
            raise DataError(
                f"the arm {name} has the seeds {list(by_seed)}, {first_name} has {list(first)}: train what is missing"
            )
        ours, theirs = next(iter(by_seed.values())), next(iter(first.values()))
        if ours.provenance["data"]["test"] != theirs.provenance["data"]["test"]:
            raise DataError(f"{ours.folder} and {theirs.folder} were tested on other images")
        if (
            read_checkpoint_config(ours.checkpoint).preprocessing
            != read_checkpoint_config(theirs.checkpoint).preprocessing
        ):
            raise DataError(f"{ours.folder} and {theirs.folder} see other views of an image")
    return arms


def differing_settings(runs: Runs) -> dict[str, dict[str, Any]]:
    """The settings in which arms differ, by setting and arm."""
    settings = {name: next(iter(by_seed.values())).settings for name, by_seed in runs.items()}
    first = next(iter(settings.values()))
    names = sorted({name for values in settings.values() for name in _differences(values, first)} - {"preset"})
    return {name: {arm: values.get(name) for arm, values in settings.items()} for name in names}


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """Left minus right, seed by seed.

    Attributes:
        differences: one for each seed.
        half_width: of the 95 % interval of their mean, by Student's t; infinite for one seed.
    """

    differences: tuple[float, ...]

    @property
    def mean(self) -> float:
        return mean(self.differences)

    @property
    def deviation(self) -> float:
        """Sample standard deviation; NaN for one seed."""
        return stdev(self.differences) if len(self.differences) > 1 else math.nan

    @property
    def half_width(self) -> float:
        count = len(self.differences)
        return float(student.ppf(0.975, count - 1)) * self.deviation / math.sqrt(count) if count > 1 else math.inf

    def verdict(self, chance: float | None, sign: Sign = 1) -> Literal["reproduced", "not resolved", "contradicted"]:
        """Whether the seeds agree with the paper, which has left above, equal to or below right.

        Resolved if there are at least three seeds (two equal differences would leave the interval without a width), the
        interval lies on one side of zero, as do all seeds, and the test images make so large a difference unlikely.

        Args:
            chance: as `image_chance` gives it, if the claim is of images got right.
        """
        found = 0
        if len(self.differences) >= LEAST_SEEDS and (chance is None or chance < 0.05):
            found += self.mean - self.half_width > 0 < min(self.differences)
            found -= self.mean + self.half_width < 0 > max(self.differences)
        return "not resolved" if found == 0 else "reproduced" if found == sign else "contradicted"


def image_chance(left: Hits, right: Hits) -> float:
    """Probability of so large a difference if left and right were equally good, by Student's t over the images.

    The seeds' models are judged on the same images, so an image counts once, with its mean over the seeds.

    Args:
        left, right: whether each image is right, (seeds, images).
    """
    differences = left.mean(axis=0) - right.mean(axis=0)
    return float(ttest_1samp(differences, 0).pvalue) if differences.any() else 1.0


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; the latter is NaN for one value."""
    return mean(values), stdev(values) if len(values) > 1 else math.nan


def _differences(settings: dict[str, Any], others: dict[str, Any]) -> list[str]:
    names = sorted(settings.keys() | others.keys())
    return [name for name in names if name not in ("name", "seed") and settings.get(name) != others.get(name)]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
