import pytest
import torch
from torch import nn

from export.joint import JointClassifier
from tests.training.conftest import TINY, tiny_student
from training.model import Normalize, create_model


def images() -> torch.Tensor:
    return torch.randint(0, 256, (6, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_probabilities_are_the_mean_of_both_softmaxes_not_the_softmax_of_the_mean() -> None:
    model = tiny_student().eval()
    for head, bias in ((model.head, [5.0, 4.0, 0.0]), (model.head_dist, [-3.0, 1.0, 1.2])):
        nn.init.zeros_(head.weight)
        head.bias.data = torch.tensor(bias)
    with torch.inference_mode():
        joint, class_probabilities, distillation_probabilities = JointClassifier(model, TINY)(images())
    torch.testing.assert_close((class_probabilities + distillation_probabilities) / 2, joint)
    # With these heads the two read-outs disagree: averaged logits (1, 2.5, 0.6) would choose class 1.
    assert joint[0].tolist() == pytest.approx([0.3678, 0.3571, 0.2751], abs=1e-4)
    assert model(Normalize(TINY)(images().permute(0, 3, 1, 2)))[0].argmax() == 1


def test_normalisation_inside_equals_normalisation_outside() -> None:
    model = tiny_student().eval()
    with torch.inference_mode():
        _, class_probabilities, _ = JointClassifier(model, TINY)(images())
        tokens = model.forward_features(Normalize(TINY)(images().permute(0, 3, 1, 2)))
        torch.testing.assert_close(class_probabilities, model.head(tokens[:, 0]).softmax(dim=-1))


def test_a_model_with_one_head_gives_probabilities_only() -> None:
    model = create_model(
        "deit_tiny_patch16_224",
        num_classes=3,
        image_size=16,
        drop_path=0,
        model_args={"patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 3},
    )
    classifier = JointClassifier(model.eval(), TINY)
    assert classifier.output_names == ("probabilities",)
    with torch.inference_mode():
        (probabilities,) = classifier(images())
    torch.testing.assert_close(probabilities.sum(dim=-1), torch.ones(6))
