"""Losses of DeiT's distillation (arXiv:2012.12877 section 4)."""

import torch.nn.functional as F
from torch import Tensor


def hard_distillation_loss(
    class_logits: Tensor,
    distillation_logits: Tensor,
    targets: Tensor,
    teacher_logits: Tensor,
    label_smoothing: float,
) -> Tensor:
    """Half the cross-entropy of the class head with the label, half that of the distillation head with the teacher.

    Equation 3 of the paper with its distillation token: 1/2 CE(z_class, y) + 1/2 CE(z_distillation, argmax z_teacher).
    The teacher's decision is not smoothed; under mixup it is its one answer for the mixed image.

    Args:
        class_logits, distillation_logits, teacher_logits: (N, classes).
        targets: class indices (N,), or mixed and already smoothed distributions (N, classes).
        label_smoothing: applied to class indices.
    """
    label_loss = label_cross_entropy(class_logits, targets, label_smoothing)
    teacher_loss = F.cross_entropy(distillation_logits.float(), teacher_logits.argmax(dim=-1))
    return (label_loss + teacher_loss) / 2


def label_cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    """Cross-entropy in float32 with class indices (N,), smoothed, or with distributions (N, classes) as they are."""
    smoothing = 0.0 if targets.is_floating_point() else label_smoothing
    return F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)
