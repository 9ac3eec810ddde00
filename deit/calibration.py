"""A model's confidence on held-out images, as its export measured it; stored in the provenance."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How a model was calibrated on held-out images, and the entropy above which an image counts as unfamiliar.

    Attributes:
        images: number of labelled held-out images used for calibration; the gate does not use them.
        temperature: above 1 makes answers less certain, below 1 more.
        floor: probability that label smoothing leaves on every class; 0 for none.
        calibration_error_before, calibration_error: on the gate's images, in 0..1, over 15 bins of equal width.
        entropy_limit_bits: entropy above which an answer counts as unfamiliar.
        false_refusals: share of the held-out images whose answers are above that limit.
    """

    images: int
    temperature: float
    floor: float
    calibration_error_before: float
    calibration_error: float
    entropy_limit_bits: float
    false_refusals: float


def entropy_bits(probabilities: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Entropy along the last axis, in bits: 0 for a certain prediction, log2(classes) if all classes are equally
    probable.

    It separates familiar images from others better than the largest probability does, the baseline of
    arXiv:1610.02136, and needs nothing but the answer.
    """
    known = np.asarray(probabilities, np.float64)
    entropy: npt.NDArray[np.float64] = -(known * np.log2(known, out=np.zeros_like(known), where=known > 0)).sum(axis=-1)
    return entropy
