"""Accuracy and confusions of a model by class, and the calibration error of its probabilities."""

from dataclasses import dataclass

import torch
from torch import Tensor

from training.processes import Processes

BINS = 15
"""Number of bins of the calibration error, as in arXiv:1706.04599."""


@dataclass(frozen=True, kw_only=True)
class ClassReport:
    """The report on one read-out, over all images and processes.

    Attributes:
        readout: the reported one: joint, or class for a model with one head.
        label_names: of the classes in index order; two may have one name.
        accuracy: top-1 in 0..1 by class index, None for a class without images.
        images: by class index.
        confusions: (class index, answered index, images), the most frequent first; pairs that never occur are left out.
        calibration_error: mean distance between probability and accuracy, over 15 equal bins of probability.
    """

    readout: str
    label_names: tuple[str, ...]
    accuracy: tuple[float | None, ...]
    images: tuple[int, ...]
    confusions: tuple[tuple[int, int, int], ...]
    calibration_error: float


class ClassTally:
    """The counts for a report, summed batch by batch on the device."""

    def __init__(self, classes: int, device: torch.device) -> None:
        self._confusion = torch.zeros(classes, classes, dtype=torch.int64, device=device)
        self._bins = torch.zeros(BINS, 3, dtype=torch.float64, device=device)  # images, their probability, correct ones

    def add(self, probabilities: Tensor, labels: Tensor) -> None:
        """Count a batch. Args: probabilities (N, classes), class indices (N,)."""
        confidence, answers = probabilities.max(dim=-1)
        classes = len(self._confusion)
        self._confusion += torch.bincount(labels * classes + answers, minlength=classes**2).view(classes, classes)
        correct = (answers == labels).double()
        columns = torch.stack([torch.ones_like(correct), confidence.double(), correct], dim=1)
        self._bins.index_add_(0, (confidence * BINS).long().clamp(0, BINS - 1), columns)

    def result(self, processes: Processes, *, readout: str, label_names: tuple[str, ...]) -> ClassReport:
        confusion, bins = processes.sum(self._confusion).cpu(), processes.sum(self._bins).cpu()
        counts, correct = confusion.sum(dim=1).tolist(), confusion.diagonal().tolist()
        wrong = confusion.clone().fill_diagonal_(0)
        pairs = sorted(wrong.nonzero().tolist(), key=lambda pair: -int(wrong[pair[0], pair[1]]))
        return ClassReport(
            readout=readout,
            label_names=label_names,
            accuracy=tuple(right / count if count else None for count, right in zip(counts, correct, strict=True)),
            images=tuple(counts),
            confusions=tuple((label, answer, int(wrong[label, answer])) for label, answer in pairs),
            calibration_error=((bins[:, 1] - bins[:, 2]).abs().sum() / bins[:, 0].sum()).item(),
        )
