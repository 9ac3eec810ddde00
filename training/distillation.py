"""Losses of DeiT's distillation, one for each row of the paper's strategy table (arXiv:2012.12877 section 4).

z_c and z_d are the logits of the class and the distillation head, z_t the teacher's, y the label, w the label weight:

    none              CE(y, z_c)
    soft              w CE(y, z_c) + (1 - w) T² KL(softmax(z_t / T), softmax(z / T))
    hard              w CE(y, z_c) + (1 - w) CE(argmax z_t, z)
    two-class-tokens  w CE(y, z_c) + (1 - w) CE(y, z_d)          the paper's control: a second token without a teacher
    nkd               CE(y, z_c) + NKD(z, z_t, y)                arXiv:2303.13005

z is z_d where the student has a distillation token, else z_c, "usual" distillation. The paper's lambda and DeiT's
--distillation-alpha are 1 - w. A loss on features (training.features) is added to any of them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from deit.errors import TrainingError
from training.config import Distillation, KlReduction
from training.features import Features, ViTKD, logits_and_features
from training.freezing import layer_groups
from training.model import is_distilled


@dataclass(frozen=True, kw_only=True)
class DistillationLoss:
    """The loss of one strategy.

    Attributes:
        label_weight: share of the label's term; the rest is the teacher's, or the second token's. Not of nkd.
        temperature: of soft distillation.
        kl_reduction: of soft distillation. batchmean is the paper's: summed over classes, averaged over images. numel
            averages over classes as well, as DeiT's released code does, so that the term is smaller by the number of
            classes.
        nkd_gamma, nkd_temperature: of nkd.
        label_smoothing: of class indices. Mixed targets come smoothed, and the teacher's decision is never smoothed.
    """

    distillation: Distillation
    label_weight: float
    temperature: float
    kl_reduction: KlReduction
    nkd_gamma: float
    nkd_temperature: float
    label_smoothing: float

    def __call__(
        self, class_logits: Tensor, distillation_logits: Tensor | None, targets: Tensor, teacher_logits: Tensor | None
    ) -> Tensor:
        """The mean loss of a batch.

        Args:
            class_logits, distillation_logits, teacher_logits: (N, classes); None where the strategy has none.
                For hard, the teacher may also give its decisions, (N,).
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
            if self.distillation == "nkd":
                return label_loss + nkd_loss(
                    taught_logits, teacher_logits, targets, self.nkd_gamma, self.nkd_temperature
                )
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
    """Cross-entropy with the teacher's decision, which under mixup is one label for the mixed image.

    Args:
        teacher_logits: (N, classes), or the decisions (N,).
    """
    decisions = teacher_logits.argmax(dim=-1) if teacher_logits.is_floating_point() else teacher_logits
    return F.cross_entropy(logits.float(), decisions)


def soft_teacher_loss(logits: Tensor, teacher_logits: Tensor, temperature: float, kl_reduction: KlReduction) -> Tensor:
    """T² KL(teacher, student) of the softmaxes at temperature T, in Hinton's order."""
    divergence = F.kl_div(
        F.log_softmax(logits.float() / temperature, dim=-1),
        F.log_softmax(teacher_logits.detach().float() / temperature, dim=-1),
        reduction="sum",
        log_target=True,
    )
    return divergence * temperature**2 / (len(logits) if kl_reduction == "batchmean" else logits.numel())


def nkd_loss(logits: Tensor, teacher_logits: Tensor, targets: Tensor, gamma: float, temperature: float) -> Tensor:
    """Normalised knowledge distillation, -T_t log S_t - gamma T² sum of T'_i log S'_i over the other classes.

    t is the label, of a mixed one the largest share; S and T are student's and teacher's softmax, S' and T' at the
    temperature over the other classes alone. A cross-entropy: a student that equals its teacher does not reach 0.

    Args:
        logits, teacher_logits: (N, classes).
        targets: class indices (N,), or distributions (N, classes).
    """
    logits, teacher_logits = logits.float(), teacher_logits.detach().float()
    indices = (targets.argmax(dim=-1) if targets.is_floating_point() else targets)[:, None]
    shares = teacher_logits.softmax(dim=-1).gather(1, indices)
    target_loss = -(shares * logits.log_softmax(dim=-1).gather(1, indices)).mean()

    # minus infinity takes the label out of both softmaxes; its product with the teacher's 0 would be NaN
    is_target = F.one_hot(indices[:, 0], logits.shape[-1]).bool()
    others = (logits / temperature).masked_fill(is_target, -torch.inf).log_softmax(dim=-1).masked_fill(is_target, 0)
    teacher_others = (teacher_logits / temperature).masked_fill(is_target, -torch.inf).softmax(dim=-1)
    return target_loss - gamma * temperature**2 * (teacher_others * others).sum(dim=-1).mean()


class Objective(nn.Module):
    """A student with its losses in one forward, and with the parameters that only the losses need.

    DistributedDataParallel synchronises the gradients of what its own forward computed, so no loss may call the
    student from outside.
    """

    def __init__(self, student: nn.Module, loss: DistillationLoss, features: ViTKD | None = None) -> None:
        super().__init__()
        self.student = student
        self.features = features
        self._loss = loss
        if is_distilled(student):
            student.set_distilled_training(True)  # type: ignore[operator]  # both heads' logits while training

    def forward(
        self,
        images: Tensor,
        targets: Tensor,
        teacher_logits: Tensor | None = None,
        teacher_features: Features | None = None,
    ) -> Tensor:
        """The mean loss of a batch of normalised images (N, 3, H, W)."""
        if self.features is None:
            logits = self.student(images)
        else:
            assert isinstance(self.student, VisionTransformer)  # ViTKD takes no other
            assert teacher_features is not None
            logits, features = logits_and_features(self.student, images, self.features.taps)
        class_logits, distillation_logits = logits if isinstance(logits, tuple) else (logits, None)
        loss = self._loss(class_logits, distillation_logits, targets, teacher_logits)
        return loss if self.features is None else loss + self.features(features, teacher_features)

    def no_weight_decay(self) -> set[str]:
        """The student's parameters without weight decay, for timm's optimiser factory."""
        names = self.student.no_weight_decay() if hasattr(self.student, "no_weight_decay") else ()  # type: ignore[operator]
        return {f"student.{name}" for name in names}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """The layer of a parameter, for timm's layer decay.

        The distillation token counts as a head, because it may be new like its head; timm puts it into the stem. So
        do the parameters of the losses.
        """
        layers = layer_groups(self.student, "--layer-decay")
        heads = max(layers.values())
        layers.pop("dist_token", None)
        return lambda name: layers.get(name.removeprefix("student."), heads)


def check_architecture(architecture: str, model: nn.Module, distillation: Distillation, token: str) -> None:
    """Raises TrainingError if a head would stay untrained, or the architecture lacks the strategy's token."""
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
