"""Golden values computed with plain Python in float64 from the paper's equations."""

import pytest
import torch

from training.distillation import hard_distillation_loss, label_cross_entropy

DISTILLATION = torch.tensor([[1, 2, 0.5, -1], [0.2, -0.3, 1.5, 0]])
CLASS = torch.tensor([[0.5, 1.5, 0, -0.5], [1, 0, 0.8, -1]])
TEACHER = torch.tensor([[3, 1, 0, -2], [0, 0.5, 2.5, -1]])
LABELS = torch.tensor([1, 2])


def test_label_loss_is_the_smoothed_cross_entropy() -> None:
    assert label_cross_entropy(CLASS, LABELS, 0.1).item() == pytest.approx(0.880456, abs=1e-6)


def test_hard_distillation_is_half_label_and_half_teacher() -> None:
    loss = hard_distillation_loss(CLASS, DISTILLATION, LABELS, TEACHER, 0.1)
    assert loss.item() == pytest.approx(0.940872, abs=1e-6)  # (0.880456 + 1.001289) / 2


def test_mixed_targets_are_taken_as_they_are() -> None:
    smoothed = torch.tensor([[0.025, 0.925, 0.025, 0.025], [0.025, 0.025, 0.925, 0.025]])
    assert label_cross_entropy(CLASS, smoothed, 0.1).item() == pytest.approx(0.880456, abs=1e-6)


def test_gradients_reach_both_heads_and_not_the_teacher() -> None:
    class_logits, distillation_logits = CLASS.clone().requires_grad_(), DISTILLATION.clone().requires_grad_()
    teacher_logits = TEACHER.clone().requires_grad_()
    hard_distillation_loss(class_logits, distillation_logits, LABELS, teacher_logits, 0.1).backward()
    assert class_logits.grad is not None
    assert distillation_logits.grad is not None
    assert class_logits.grad.abs().sum() > 0 < distillation_logits.grad.abs().sum()
    assert teacher_logits.grad is None


def test_bfloat16_logits_are_compared_in_float32() -> None:
    assert label_cross_entropy(CLASS.bfloat16(), LABELS, 0.1).dtype == torch.float32
