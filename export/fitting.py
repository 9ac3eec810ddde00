"""Calibrates a classifier on held-out images, and finds the entropy above which an image counts as unfamiliar."""

import io
import logging
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from deit.calibration import Calibration, entropy_bits
from deit.errors import DataError
from deit.preprocessing import Preprocessing
from export.confidence import (
    LARGEST_TEMPERATURE,
    SMALLEST_TEMPERATURE,
    Bin,
    Labels,
    Probabilities,
    calibrated,
    calibration_error,
    fit,
    reliability,
)
from export.config import FALSE_REFUSALS, FEWEST_HELD_OUT, ExportConfig
from export.gate import REFERENCE_BATCH, Reference
from export.joint import JointClassifier
from export.samples import leave_out
from training.images import LabelledImages, prepare

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Confidence:
    """The calibration, and the gate's images in bins of probability before and after."""

    calibration: Calibration
    before: list[Bin]
    after: list[Bin]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def as_text(self) -> str:
        """The error and the bins, as report.txt shows them."""
        found = self.calibration
        console = Console(file=io.StringIO(), width=140)
        console.print(
            f"\nprobabilities fitted on {found.images} other images: temperature {found.temperature:.3f}, floor "
            f"{found.floor:.4f}\ncalibration error {found.calibration_error_before:.2%} before, "
            f"{found.calibration_error:.2%} after; answers with more than {found.entropy_limit_bits:.2f} bits of "
            f"entropy are unfamiliar ({found.false_refusals:.1%} of those images)"
        )
        table = Table("fitted", box=None, pad_edge=False)
        for heading in ("images", "probability", "right"):
            table.add_column(heading, justify="right")
        for title, bins in (("before", self.before), ("after", self.after)):
            for each in bins:
                table.add_row(title, str(each.images), f"{each.probability:.3f}", f"{each.right:.3f}")
        console.print(table)
        return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def fit_confidence(
    classifier: JointClassifier,
    expected: Reference,
    images: LabelledImages | None,
    preprocessing: Preprocessing,
    config: ExportConfig,
) -> Confidence | None:
    """Calibrate `classifier` on labelled images that the gate does not use; afterwards it returns calibrated
    probabilities.

    Args:
        expected: its own answers to the gate's images, on which the errors are reported.
        images: those to fit to; None if there are none.

    Returns:
        None if there are too few such images, or nothing fits their labels, or `config` turns this off; the
        classifier is unchanged.

    Raises:
        DataError: `config` requires it, and it cannot be done; or too many images are damaged.
    """
    if config.calibrate is False:
        return None
    count = 0 if images is None else len(images)
    if images is None or count < FEWEST_HELD_OUT or expected.labels is None:
        finding = (
            f"{config.images} has {count} labelled images of the model's classes beyond those of the gate, and "
            f"{FEWEST_HELD_OUT} are needed to fit the probabilities"
        )
        _leave_alone(config, finding, "add images", logging.INFO)
        return None
    logger.info("calibrating the probabilities on %d images", count)
    probabilities, labels = answers(classifier, images, preprocessing)
    fitted = fit(probabilities, labels)
    if fitted is None:
        right = (probabilities.argmax(axis=1) == labels).mean()
        finding = (
            f"of {len(labels)} images of {config.images} {right:.1%} are answered with their label, to which no "
            f"temperature from {SMALLEST_TEMPERATURE} to {LARGEST_TEMPERATURE:.0f} fits"
        )
        _leave_alone(config, finding, "check the labels, add harder images", logging.WARNING)
        return None
    classifier.fitted = fitted
    before = reliability(expected.outputs[0], expected.labels)
    after = reliability(fitted_outputs(classifier, expected.outputs)[0], expected.labels)
    entropy = entropy_bits(fitted_outputs(classifier, [probabilities])[0])
    share = FALSE_REFUSALS if config.false_refusals is None else config.false_refusals
    limit = float(np.quantile(entropy, 1 - share))
    return Confidence(
        calibration=Calibration(
            images=len(labels),
            temperature=fitted[0],
            floor=fitted[1],
            calibration_error_before=calibration_error(before),
            calibration_error=calibration_error(after),
            entropy_limit_bits=limit,
            false_refusals=float((entropy > limit).mean()),
        ),
        before=before,
        after=after,
    )


def _leave_alone(config: ExportConfig, finding: str, remedy: str, level: int) -> None:
    """Log why nothing is calibrated. Raises DataError if `config` requires it."""
    if config.calibrate:
        raise DataError(f"{finding}: {remedy}, or leave --calibrate out")
    logger.log(level, "%s: the probabilities are not calibrated", finding)


def fitted_reference(classifier: JointClassifier, expected: Reference) -> Reference:
    """The calibrated classifier's outputs, computed from its earlier ones."""
    return replace(
        expected,
        outputs=fitted_outputs(classifier, expected.outputs),
        extreme_outputs=fitted_outputs(classifier, expected.extreme_outputs),
    )


def fitted_outputs(classifier: JointClassifier, outputs: list[Any]) -> list[Any]:
    assert classifier.fitted is not None
    temperature, floor = classifier.fitted
    return [calibrated(torch.from_numpy(each), temperature, floor).numpy() for each in outputs]


def answers(
    classifier: JointClassifier, images: LabelledImages, preprocessing: Preprocessing
) -> tuple[Probabilities, Labels]:
    """`probabilities` (N, classes) and labels (N,) of the images that can be decoded.

    Raises:
        DataError: too many cannot.
    """
    found: list[Probabilities] = []
    labels: list[int] = []
    damaged = 0
    for start in range(0, len(images), REFERENCE_BATCH):
        pixels = []
        for index in range(start, min(start + REFERENCE_BATCH, len(images))):
            try:
                pixels.append(prepare(images, index, preprocessing))
            except DataError as error:
                damaged += 1
                leave_out(error, damaged=damaged, of=len(images))
            else:
                labels.append(images.label(index))
        if pixels:
            with torch.inference_mode():
                found.append(classifier(torch.from_numpy(np.stack(pixels)))[0].numpy())
    return np.concatenate(found), np.array(labels)
