"""Measures the calibration of a model on held-out images, and how well entropy finds unfamiliar images.

    python -m studies.confidence --model deit_cifar10 --data CIFAR10 --other PHOTOGRAPHS

takes a published, uncalibrated model, calibrates it as `deit export` does, and evaluates on all other images of the
test split. The unfamiliar images are those of --other, noise, and plain colours.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
import typer
from rich.progress import track
from typer import Option

from benchmark.answers import onnx_session
from benchmark.config import RESULTS, ResultsOption
from benchmark.environment import this_environment
from benchmark.outcome import console, keep
from benchmark.results import Figure, Result
from deit.calibration import entropy_bits
from deit.errors import BenchmarkError
from deit.model import CLASS_PROBABILITIES, DISTILLATION_PROBABILITIES, IMAGES, PROBABILITIES
from deit.options import command_of
from deit.repository.models import find_model, read_version
from export.confidence import Labels, Probabilities, calibrated, calibration_error, fit, reliability
from export.config import FALSE_REFUSALS
from export.samples import MOST_HELD_OUT
from studies import run_study
from training.images import open_images, prepare

MADE_IMAGES = 500
BATCH = 32


@dataclass(frozen=True, kw_only=True)
class ConfidenceConfig:
    data: Annotated[Path, Option(help="The data set of the model's classes; its test split is used.")]
    other: Annotated[Path | None, Option(help="Photographs of other things: a data set, or a parquet file.")] = None
    model: Annotated[str, Option(help="Name of the model.")] = "deit_cifar10"
    model_repository: Annotated[Path, Option(help="Folder of the models.")] = Path("model_repository")
    results: ResultsOption = RESULTS


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The model's answers to some images.

    Attributes:
        probabilities: (N, classes).
        heads_differ: whether both heads have different first answers, (N,).
    """

    probabilities: Probabilities
    heads_differ: npt.NDArray[np.bool_]

    def part(self, places: npt.NDArray[np.int64]) -> "Answers":
        return Answers(probabilities=self.probabilities[places], heads_differ=self.heads_differ[places])


def measure_confidence(config: ConfidenceConfig) -> Result:
    """One result: errors before and after, and how well each kind of unfamiliar images is recognised.

    Raises:
        BenchmarkError: the model is fitted already, or has one head; the data has too few images.
    """
    version = read_version(find_model(config.model_repository, config.model))
    if DISTILLATION_PROBABILITIES not in {output.name for output in version.config.output}:
        raise BenchmarkError(f"{version.folder} has one head: take a distilled model")
    if version.provenance is not None and version.provenance.calibration is not None:
        raise BenchmarkError(f"{version.folder} is fitted already: export it with --no-calibrate")
    preprocessing = version.preprocessing
    session = onnx_session(version.file)
    size = preprocessing.image_size

    def ask(images: list[npt.NDArray[np.uint8]]) -> Answers:
        names = [PROBABILITIES, CLASS_PROBABILITIES, DISTILLATION_PROBABILITIES]
        batches = [np.stack(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
        found = [
            np.concatenate(parts)
            for parts in zip(*(session.run(names, {IMAGES: each}) for each in batches), strict=True)
        ]
        return Answers(probabilities=found[0], heads_differ=found[1].argmax(axis=1) != found[2].argmax(axis=1))

    test = open_images(config.data, "test")
    if len(test) < 2 * MOST_HELD_OUT:
        raise BenchmarkError(f"{config.data} has {len(test)} test images: give {2 * MOST_HELD_OUT} or more")
    shown = track(range(len(test)), description="preparing", console=console, transient=True)
    known = ask([prepare(test, index, preprocessing) for index in shown])
    labels: Labels = np.array([test.label(index) for index in range(len(test))])
    random = np.random.default_rng(0)
    unfamiliar = {
        "noise": list(random.integers(0, 256, (MADE_IMAGES, size, size, 3), dtype=np.uint8)),
        "plain": [
            np.broadcast_to(colour, (size, size, 3))
            for colour in random.integers(0, 256, (MADE_IMAGES, 1, 1, 3), dtype=np.uint8)
        ],
    }
    if config.other is not None:
        other = open_images(config.other, "test")
        unfamiliar["photographs"] = [prepare(other, index, preprocessing) for index in range(len(other))]

    fitted_on = np.arange(MOST_HELD_OUT) * len(test) // MOST_HELD_OUT
    judged = np.setdiff1d(np.arange(len(test)), fitted_on)
    fitted = fit(known.probabilities[fitted_on], labels[fitted_on])
    if fitted is None:
        raise BenchmarkError(f"no temperature fits the labels of {config.data}: are they those of {config.model}?")
    temperature, floor = fitted

    def entropy(answers: Answers) -> npt.NDArray[np.float64]:
        fitted = calibrated(torch.from_numpy(answers.probabilities), temperature, floor).numpy()
        return entropy_bits(fitted)

    limit = float(np.quantile(entropy(known.part(fitted_on)), 1 - FALSE_REFUSALS))
    held = known.part(judged)
    before = held.probabilities
    after = calibrated(torch.from_numpy(before), temperature, floor).numpy()
    right = before.argmax(axis=1) == labels[judged]
    changed = (before.argmax(axis=1) != after.argmax(axis=1)).sum()
    figures = {
        "top1": Figure(value=float(right.mean()), unit="share"),
        "first_answers_changed": Figure(value=float(changed), unit="images"),
        "calibration_error_before": Figure(value=calibration_error(reliability(before, labels[judged])), unit="share"),
        "calibration_error": Figure(value=calibration_error(reliability(after, labels[judged])), unit="share"),
        "refused": Figure(value=float((entropy(held) > limit).mean()), unit="share"),
        "top1_of_the_rest": Figure(value=float(right[entropy(held) <= limit].mean()), unit="share"),
        "heads_differ": Figure(value=float(held.heads_differ.mean()), unit="share"),
        "top1_where_heads_differ": Figure(value=float(right[held.heads_differ].mean()), unit="share"),
    }
    for name, images in unfamiliar.items():
        answers = ask(images)
        figures |= {
            f"auroc_{name}": Figure(value=auroc(entropy(answers), entropy(held)), unit="share"),
            f"refused_{name}": Figure(value=float((entropy(answers) > limit).mean()), unit="share"),
            f"heads_differ_{name}": Figure(value=float(answers.heads_differ.mean()), unit="share"),
        }
    return Result(
        kind="confidence",
        model=config.model,
        precision=version.precision,
        conditions={
            "data": config.data.name,
            "fitted_on": len(fitted_on),
            "count": len(judged),
            "temperature": round(temperature, 4),
            "floor": round(floor, 4),
            "false_refusals": FALSE_REFUSALS,
        },
        figures=figures,
    )


def auroc(unfamiliar: npt.NDArray[np.float64], familiar: npt.NDArray[np.float64]) -> float:
    """Probability that an unfamiliar image has the larger value of the two; equal ones count half."""
    ordered = np.sort(familiar)
    below, not_above = (np.searchsorted(ordered, unfamiliar, side) for side in ("left", "right"))
    return float((below + not_above).mean() / 2 / len(familiar))


app = typer.Typer()


@app.command()
@command_of(ConfidenceConfig)
def confidence(config: ConfidenceConfig) -> None:
    """Calibration error before and after a fit, and how well entropy finds unfamiliar images."""
    environment = this_environment()
    result = measure_confidence(config)
    for name, figure in result.figures.items():
        typer.echo(f"{name:<28}{figure.value:.4g} {figure.unit}")
    keep([result], environment, config.results, "python", "-m", "studies.confidence")


if __name__ == "__main__":
    run_study(app)
