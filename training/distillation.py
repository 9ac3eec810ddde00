"""Losses of DeiT's distillation, one for each row of the paper's strategy table (arXiv:2012.12877 section 4).

z_c and z_d are the logits of the class and the distillation head, z_t the teacher's, y the label, w the label weight:

    none              CE(y, z_c)
    soft              w CE(y, z_c) + (1 - w) T² KL(softmax(z_t / T), softmax(z / T))
    hard              w CE(y, z_c) + (1 - w) CE(argmax z_t, z)
    two-class-tokens  w CE(y, z_c) + (1 - w) CE(y, z_d)          the paper's control: a second token without a teacher

z is z_d where the student has a distillation token, else z_c, "usual" distillation. The paper's lambda and DeiT's
--distillation-alpha are 1 - w.
"""

from dataclasses import dataclass

import timm
import torch.nn.functional as F
from torch import Tensor, nn

from deit.errors import TrainingError
from training.config import Distillation, KlReduction
from training.model import is_distilled


@dataclass(frozen=True, kw_only=True)
class DistillationLoss:
    """The loss of one strategy.

    Attributes:
        label_weight: share of the label's term; the rest is the teacher's, or the second token's.
        temperature: of soft distillation.
        kl_reduction: of soft distillation. batchmean is the paper's: summed over classes, averaged over images. numel
            averages over classes as well, as DeiT's released code does, so that the term is smaller by the number of
            classes.
        label_smoothing: of class indices. Mixed targets come smoothed, and the teacher's decision is never smoothed.
    """

    distillation: Distillation
    label_weight: float
    temperature: float
    kl_reduction: KlReduction
    label_smoothing: float

    def __call__(
        self, class_logits: Tensor, distillation_logits: Tensor | None, targets: Tensor, teacher_logits: Tensor | None
    ) -> Tensor:
        """The mean loss of a batch.

        Args:
            class_logits, distillation_logits, teacher_logits: (N, classes); None where the strategy has none.
            targets: class indices (N,), or mixed and already smoothed distributions (N, classes).
        """
        label_loss = label_cross_entropy(class_logits, targets, self.label_smoothing)
        taught_logits = class_logits if distillation_logits is None else distillation_logits
        if self.distillation == "none":
            return label_loss
        if self.distillation == "two-class-tokens":
            other_loss = label_cross_entropy(taught_logits, targets, self.label_smoothing)
        else:
            assert teacher_logits is not None  # TrainConfig asks for a teacher
            if self.distillation == "hard":
                other_loss = hard_teacher_loss(taught_logits, teacher_logits)
            else:
                other_loss = soft_teacher_loss(taught_logits, teacher_logits, self.temperature, self.kl_reduction)
        return self.label_weight * label_loss + (1 - self.label_weight) * other_loss


def label_cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """Cross-entropy in float32 with class indices (N,), smoothed, or with distributions (N, classes) as they are."""
    smoothing = 0.0 if targets.is_floating_point() else label_smoothing
    return F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)


def hard_teacher_loss(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy with the teacher's decision; under mixup that is its one answer for the mixed image."""
    return F.cross_entropy(logits.float(), teacher_logits.argmax(dim=-1))


def soft_teacher_loss(logits: Tensor, teacher_logits: Tensor, temperature: float, kl_reduction: KlReduction) -> Tensor:
    """T² KL(teacher, student) of the softmaxes at temperature T, in Hinton's order."""
    divergence = F.kl_div(
        F.log_softmax(logits.float() / temperature, dim=-1),
        F.log_softmax(teacher_logits.detach().float() / temperature, dim=-1),
        reduction="sum",
        log_target=True,
    )
    return divergence * temperature**2 / (len(logits) if kl_reduction == "batchmean" else logits.numel())


class Objective(nn.Module):
    """A student with its loss in one forward.

    DistributedDataParallel synchronises the gradients of what its own forward computed, so nothing of the loss may
    call the student from outside.
    """

    def __init__(self, student: nn.Module, loss: DistillationLoss) -> None:
        super().__init__()
        self.student = student
        self._loss = loss
        if is_distilled(student):
            student.set_distilled_training(True)  # type: ignore[operator]  # both heads' logits while training

    def forward(self, images: Tensor, targets: Tensor, teacher_logits: Tensor | None) -> Tensor:
        """The mean loss of a batch of normalised images (N, 3, H, W)."""
        logits = self.student(images)
        class_logits, distillation_logits = logits if isinstance(logits, tuple) else (logits, None)
        return self._loss(class_logits, distillation_logits, targets, teacher_logits)


def check_architecture(architecture: str, model: nn.Module, distillation: Distillation, token: str) -> None:
    """Raises TrainingError where a head would stay untrained, or the strategy's token is not in the architecture."""
    needs_token = distillation == "two-class-tokens" or (distillation != "none" and token == "distillation")
    if is_distilled(model) == needs_token:
        return
    if needs_token:
        counterpart = _counterpart(architecture, "_patch", "_distilled_patch") or "a deit_*_distilled_* model"
        instead = "" if distillation == "two-class-tokens" else ", or --token class for a student without one"
        raise TrainingError(
            f"{architecture} has no distillation token, which --distillation {distillation} trains: choose "
            f"{counterpart}{instead}"
        )
    counterpart = _counterpart(architecture, "_distilled", "") or "a model without _distilled"
    if distillation == "none":
        raise TrainingError(
            f"{architecture} has a distillation head that nothing would train without a teacher: add "
            f"--distillation hard --teacher …, or choose {counterpart}"
        )
    raise TrainingError(
        f"{architecture} has a distillation head that --token class leaves untrained: choose {counterpart}, or "
        "--token distillation"
    )


def _counterpart(architecture: str, part: str, replacement: str) -> str | None:
    """timm's name of the same architecture with or without the distillation token."""
    name = architecture.replace(part, replacement)
    return name if name != architecture and timm.is_model(name) else None
