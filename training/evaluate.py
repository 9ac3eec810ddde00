"""Accuracy of each read-out of a model, and how often they disagree.

Read-outs: "class" always; for a distilled model also "distillation", "joint", the mean of both softmaxes (paper
section 4, "Classification with our approach: joint classifiers"), and "joint_logit", the mean of both logits, as in
DeiT's and timm's code.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.class_report import ClassReport, ClassTally
from training.data import CorruptImages
from training.model import Normalize, Teacher, head_logits
from training.processes import Processes

LABEL, TEACHER = "label", "teacher"

SMALLEST = 1e-12
"""Lower limit of a label's probability, so that one image cannot make the mean loss infinite."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Exact over all images and processes.

    Attributes:
        images: counted, without those that cannot be decoded.
        accuracy: in 0..1 by read-out, such as {"joint_top1": 0.81, "class_top5": …}; with ReaL labels also
            {"joint_real_top1": …}, over the images that have such labels.
        loss: mean negative log-likelihood of the label by read-out, in nats.
        deciders: the label, the teacher if there is one, and each read-out.
        by_class: accuracy, confusions and calibration of the served read-out, if they were requested.
        disagreement: share of the images on which two deciders differ, (deciders, deciders).
    """

    images: int
    accuracy: dict[str, float]
    loss: dict[str, float]
    deciders: tuple[str, ...]
    disagreement: tuple[tuple[float, ...], ...]
    by_class: ClassReport | None = None

    def numbers(self) -> dict[str, float]:
        """Accuracy and loss as in an epoch's line of metrics.jsonl: {"joint_top1": …, "joint_loss": …}."""
        return {**self.accuracy, **{f"{name}_loss": loss for name, loss in self.loss.items()}}


class Tally:
    """The correct answers of one model, summed batch by batch on the device."""

    def __init__(self, label_names: tuple[str, ...] | None) -> None:
        self._label_names = label_names
        self._by_class: ClassTally | None = None
        self._readouts: list[str] = []
        self._deciders: list[str] = []
        self._correct = self._real_correct = self._differ = torch.zeros(0)
        self._loss = torch.zeros(0)
        self._totals = torch.zeros(0)  # images, images with ReaL labels

    def add(self, scores: dict[str, Tensor], decisions: dict[str, Tensor], labels: Tensor, real: Tensor | None) -> None:
        """Count a batch.

        Args:
            scores: of each read-out, (N, classes).
            decisions: of the other deciders: the label, the teacher, (N,) each.
            real: the classes that ReaL finds, bool (N, classes).
        """
        decisions = decisions | {name: logits.argmax(dim=-1) for name, logits in scores.items()}
        if not self._readouts:
            self._readouts, self._deciders = list(scores), list(decisions)
            self._correct = labels.new_zeros(len(scores), 2)
            self._real_correct = torch.zeros_like(self._correct)
            self._differ = labels.new_zeros(len(decisions), len(decisions))
            self._loss = torch.zeros(len(scores), dtype=torch.float64, device=labels.device)
            self._totals = labels.new_zeros(2)
            if self._label_names is not None:
                self._by_class = ClassTally(len(self._label_names), labels.device)
        stacked = torch.stack(list(decisions.values()))
        self._differ += (stacked[:, None] != stacked[None]).sum(dim=-1)
        truth = nn.functional.one_hot(labels, next(iter(scores.values())).shape[1]).bool()
        self._correct += _hits(scores, truth)
        likelihoods = [probabilities(name, each).gather(1, labels[:, None]) for name, each in scores.items()]
        self._loss -= torch.stack(likelihoods).double().clamp_min(SMALLEST).log().sum(dim=(1, 2))
        if self._by_class is not None:
            self._by_class.add(probabilities(self._answering, scores[self._answering]), labels)
        self._totals[0] += len(labels)
        if real is not None:
            self._real_correct += _hits(scores, real)
            self._totals[1] += real.any(dim=-1).sum()

    def result(self, processes: Processes, *, with_real: bool) -> Evaluation:
        """The shares of all processes' images."""
        for counts in (self._correct, self._real_correct, self._differ, self._loss, self._totals):
            processes.sum(counts)
        count, real_count = self._totals.tolist()
        accuracy = {}
        for place, name in enumerate(self._readouts):
            for column, k in enumerate((1, 5)):
                accuracy[f"{name}_top{k}"] = self._correct[place, column].item() / count
                if with_real:
                    accuracy[f"{name}_real_top{k}"] = self._real_correct[place, column].item() / max(real_count, 1)
        matrix = tuple(tuple(number / count for number in row) for row in self._differ.tolist())
        return Evaluation(
            images=count,
            accuracy=accuracy,
            loss={name: loss / count for name, loss in zip(self._readouts, self._loss.tolist(), strict=True)},
            deciders=tuple(self._deciders),
            disagreement=matrix,
            by_class=None
            if self._by_class is None
            else self._by_class.result(processes, readout=self._answering, label_names=self._label_names or ()),
        )

    @property
    def _answering(self) -> str:
        """The read-out with which a server answers."""
        return "joint" if "joint" in self._readouts else "class"


def evaluate(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor, Tensor]], *arguments: Any, **named: Any
) -> Evaluation:
    """Evaluate one model; the other arguments are those of `evaluate_together`."""
    return evaluate_together({"": model}, batches, *arguments, **named)[""]


@torch.inference_mode()
def evaluate_together(
    models: dict[str, nn.Module],
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    normalize: Normalize,
    device: torch.device,
    *,
    corrupt: CorruptImages,
    processes: Processes = Processes(),  # noqa: B008  frozen
    teacher: Teacher | None = None,
    real: Tensor | None = None,
    label_names: tuple[str, ...] | None = None,
) -> dict[str, Evaluation]:
    """Evaluate the models by name, reading the images once, in float32 whatever the training ran in.

    Args:
        batches: uint8 images (N, 3, H, W), class indices (N,) with -1 for an undecodable image, image indices (N,).
        real: the classes that ReaL finds in each image of the split, bool (images, classes).
        label_names: of the classes; if given, the evaluations report by class.
    """
    were_training = {name: model.training for name, model in models.items()}
    tallies = {name: Tally(label_names) for name in models}
    for model in models.values():
        model.eval()
    for images, labels, indices in batches:
        readable = labels >= 0
        corrupt.add(indices[~readable].tolist())
        images, labels = normalize(images[readable].to(device)), labels[readable].to(device)
        decisions = {LABEL: labels}
        if teacher is not None:
            decisions[TEACHER] = teacher(images).argmax(dim=-1)
        truth = None if real is None else real[indices[readable]].to(device)
        for name, model in models.items():
            tallies[name].add(readouts(model, images), decisions, labels, truth)
    for name, model in models.items():
        model.train(were_training[name])
    return {name: tally.result(processes, with_real=real is not None) for name, tally in tallies.items()}


def readouts(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Scores of each read-out for normalised images, (N, classes) each; only the order of the classes counts."""
    class_logits, distillation_logits = head_logits(model, images)
    if distillation_logits is None:
        return {"class": class_logits}
    return {
        "class": class_logits,
        "distillation": distillation_logits,
        "joint": joint_probabilities(class_logits, distillation_logits),
        "joint_logit": (class_logits + distillation_logits) / 2,
    }


def probabilities(readout: str, scores: Tensor) -> Tensor:
    """Probabilities (N, classes) of a read-out from its scores."""
    return scores if readout == "joint" else scores.float().softmax(dim=-1)


def joint_probabilities(class_logits: Tensor, distillation_logits: Tensor) -> Tensor:
    """Mean of both heads' softmax, (N, classes)."""
    return (class_logits.softmax(dim=-1) + distillation_logits.softmax(dim=-1)) / 2


def _hits(scores: dict[str, Tensor], truth: Tensor) -> Tensor:
    """Images with a true class first, and among the first five, (read-outs, 2). truth: bool (N, classes)."""
    rows = []
    for logits in scores.values():
        hits = truth.gather(1, logits.topk(min(5, logits.shape[1]), dim=-1).indices)
        rows.append(torch.stack([hits[:, 0].sum(), hits.any(dim=-1).sum()]))
    return torch.stack(rows)
