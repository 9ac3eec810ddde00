"""Golden values computed with plain Python in float64 from the paper's equations."""

import pytest
import torch

from deit.errors import TrainingError
from tests.training.conftest import tiny_student
from training.distillation import (
    DistillationLoss,
    Objective,
    check_architecture,
    hard_teacher_loss,
    label_cross_entropy,
    nkd_loss,
    soft_teacher_loss,
)
from training.model import create_model

DISTILLATION = torch.tensor([[1, 2, 0.5, -1], [0.2, -0.3, 1.5, 0]])
CLASS = torch.tensor([[0.5, 1.5, 0, -0.5], [1, 0, 0.8, -1]])
TEACHER = torch.tensor([[3, 1, 0, -2], [0, 0.5, 2.5, -1]])
LABELS = torch.tensor([1, 2])

LABEL, HARD_TOKEN, SOFT_TOKEN = 0.880456, 1.001289, 0.630529  # CE(y, z_c), CE(argmax z_t, z_d), 3² KL on z_d


def loss_of(distillation: str, **changes: object) -> DistillationLoss:
    settings = {"label_weight": 0.5, "temperature": 3.0, "kl_reduction": "batchmean", "label_smoothing": 0.1}
    nkd = {"nkd_gamma": 1.0, "nkd_temperature": 1.0}
    return DistillationLoss(distillation=distillation, **{**settings, **nkd, **changes})


def test_label_loss_is_the_smoothed_cross_entropy() -> None:
    assert label_cross_entropy(CLASS, LABELS, 0.1).item() == pytest.approx(LABEL, abs=1e-6)


def test_the_teachers_decision_is_not_smoothed() -> None:
    assert hard_teacher_loss(DISTILLATION, TEACHER).item() == pytest.approx(HARD_TOKEN, abs=1e-6)


@pytest.mark.parametrize(
    ("temperature", "kl_reduction", "expected"),
    [(1, "batchmean", 0.497366), (3, "batchmean", 0.630529), (1, "numel", 0.124341), (3, "numel", 0.157632)],
)
def test_soft_loss_by_temperature_and_reduction(temperature: float, kl_reduction: str, expected: float) -> None:
    assert soft_teacher_loss(DISTILLATION, TEACHER, temperature, kl_reduction).item() == pytest.approx(
        expected, abs=1e-6
    )


def test_the_gradient_of_the_soft_loss_is_the_difference_of_the_softmaxes() -> None:
    logits = DISTILLATION.clone().requires_grad_()
    soft_teacher_loss(logits, TEACHER, 3.0, "batchmean").backward()
    expected = 3.0 * ((DISTILLATION / 3).softmax(-1) - (TEACHER / 3).softmax(-1)) / 2  # over two images
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (loss_of("none"), LABEL),
        (loss_of("hard"), 0.940872),  # (LABEL + HARD_TOKEN) / 2
        (loss_of("soft"), (LABEL + SOFT_TOKEN) / 2),
        (loss_of("soft", label_weight=0.9), 0.9 * LABEL + 0.1 * SOFT_TOKEN),  # the paper's lambda 0.1
        (loss_of("soft", label_weight=0.9, kl_reduction="numel"), 0.9 * LABEL + 0.1 * SOFT_TOKEN / 4),
    ],
)
def test_strategies_with_two_heads(loss: DistillationLoss, expected: float) -> None:
    assert loss(CLASS, DISTILLATION, LABELS, TEACHER).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("gamma", "temperature", "expected"),
    [(0, 1, 0.231460), (1, 1, 0.231460 + 0.887439), (1.5, 1, 1.562618), (3.5, 3, 33.093552)],
)
def test_normalised_distillation(gamma: float, temperature: float, expected: float) -> None:
    assert nkd_loss(DISTILLATION, TEACHER, LABELS, gamma, temperature).item() == pytest.approx(expected, abs=1e-5)


def test_normalised_distillation_leaves_the_label_out_of_the_other_classes() -> None:
    """Copies of the public code from July to October 2023 do not: https://github.com/yzd-v/cls_KD/issues/16."""
    louder = TEACHER.clone()
    louder[range(2), LABELS] += 3.0
    others = [
        nkd_loss(DISTILLATION, teacher, LABELS, 1.0, 1.0) - nkd_loss(DISTILLATION, teacher, LABELS, 0.0, 1.0)
        for teacher in (TEACHER, louder)
    ]
    torch.testing.assert_close(others[0], others[1])


def test_normalised_distillation_takes_the_largest_share_of_a_mixed_label() -> None:
    mixed = torch.tensor([[0.3, 0.6, 0.05, 0.05], [0.4, 0.1, 0.5, 0.0]])
    torch.testing.assert_close(
        nkd_loss(DISTILLATION, TEACHER, mixed, 1.5, 2.0), nkd_loss(DISTILLATION, TEACHER, LABELS, 1.5, 2.0)
    )


@pytest.mark.parametrize(("head", "logits"), [(None, CLASS), (DISTILLATION, DISTILLATION)])
def test_normalised_distillation_is_added_to_the_whole_loss_of_the_label(
    head: torch.Tensor | None, logits: torch.Tensor
) -> None:
    expected = LABEL + nkd_loss(logits, TEACHER, LABELS, 1.0, 1.0).item()
    assert loss_of("nkd", label_weight=0.2)(CLASS, head, LABELS, TEACHER).item() == pytest.approx(expected, abs=1e-6)


def test_the_gradient_of_normalised_distillation_is_the_difference_of_the_softmaxes() -> None:
    logits = DISTILLATION.clone().requires_grad_()
    nkd_loss(logits, TEACHER, LABELS, 0.0, 1.0).backward()
    share = TEACHER.softmax(-1)[range(2), LABELS][:, None]
    label = torch.nn.functional.one_hot(LABELS, 4)
    torch.testing.assert_close(logits.grad, share * (DISTILLATION.softmax(-1) - label) / 2)


def test_soft_distillation_at_temperature_1_is_mmclss_plain_one_but_for_the_teachers_entropy() -> None:
    """Its loss is half the label's, half the cross-entropy with the teacher's softmax."""
    logits, again = CLASS.clone().requires_grad_(), CLASS.clone().requires_grad_()
    loss_of("soft", temperature=1.0)(logits, None, LABELS, TEACHER).backward()
    label = torch.nn.functional.cross_entropy(again, LABELS, label_smoothing=0.1)
    (0.5 * label + 0.5 * torch.nn.functional.cross_entropy(again, TEACHER.softmax(-1))).backward()
    torch.testing.assert_close(logits.grad, again.grad)


def test_two_class_tokens_both_learn_the_label() -> None:
    expected = (LABEL + label_cross_entropy(DISTILLATION, LABELS, 0.1).item()) / 2
    assert loss_of("two-class-tokens")(CLASS, DISTILLATION, LABELS, None).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("label_weight", [0.0, 0.5])
def test_without_a_distillation_head_the_class_head_learns_from_the_teacher(label_weight: float) -> None:
    expected = label_weight * LABEL + (1 - label_weight) * hard_teacher_loss(CLASS, TEACHER).item()
    loss = loss_of("hard", label_weight=label_weight)
    assert loss(CLASS, None, LABELS, TEACHER).item() == pytest.approx(expected, abs=1e-6)


def test_mixed_targets_are_taken_as_they_are() -> None:
    smoothed = torch.tensor([[0.025, 0.925, 0.025, 0.025], [0.025, 0.025, 0.925, 0.025]])
    assert label_cross_entropy(CLASS, smoothed, 0.1).item() == pytest.approx(LABEL, abs=1e-6)


@pytest.mark.parametrize("distillation", ["soft", "hard", "nkd"])
def test_gradients_reach_both_heads_and_not_the_teacher(distillation: str) -> None:
    class_logits, distillation_logits = CLASS.clone().requires_grad_(), DISTILLATION.clone().requires_grad_()
    teacher_logits = TEACHER.clone().requires_grad_()
    loss_of(distillation)(class_logits, distillation_logits, LABELS, teacher_logits).backward()
    assert class_logits.grad is not None
    assert distillation_logits.grad is not None
    assert class_logits.grad.abs().sum() > 0 < distillation_logits.grad.abs().sum()
    assert teacher_logits.grad is None


def test_bfloat16_logits_are_compared_in_float32() -> None:
    assert loss_of("soft")(CLASS.bfloat16(), None, LABELS, TEACHER.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("distillation", ["hard", "soft", "two-class-tokens", "nkd"])
def test_every_weight_of_a_distilled_student_gets_a_gradient(distillation: str) -> None:
    """DistributedDataParallel waits forever for a weight without one."""
    student = tiny_student(num_classes=4).train()
    Objective(student, loss_of(distillation))(torch.randn(2, 3, 16, 16), LABELS, TEACHER).backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


@pytest.mark.parametrize(
    ("architecture", "distillation", "token", "finding"),
    [
        ("deit_tiny_patch16_224", "hard", "distillation", "choose deit_tiny_distilled_patch16_224, or --token class"),
        ("deit_tiny_patch16_224", "two-class-tokens", "class", "choose deit_tiny_distilled_patch16_224"),
        ("deit_tiny_distilled_patch16_224", "none", "distillation", "or choose deit_tiny_patch16_224"),
        ("deit_tiny_distilled_patch16_224", "soft", "class", "choose deit_tiny_patch16_224"),
        ("resnet18", "hard", "distillation", "choose a deit_.* model, or --token class"),
    ],
)
def test_the_strategy_names_the_architecture_it_needs(
    architecture: str, distillation: str, token: str, finding: str
) -> None:
    arguments = {"channels": [8] * 4} if architecture == "resnet18" else {"embed_dim": 24, "depth": 1}
    model = create_model(architecture, num_classes=3, image_size=32, drop_path=0, model_args=arguments)
    with pytest.raises(TrainingError, match=finding):
        check_architecture(architecture, model, distillation, token)
