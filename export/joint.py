"""The graph that is served: pixels in, the joint decision of both heads out."""

import torch
from torch import Tensor, nn

from deit.model import CLASS_PROBABILITIES, DISTILLATION_PROBABILITIES, PROBABILITIES
from deit.preprocessing import Preprocessing
from training.model import head_logits, is_distilled


class JointClassifier(nn.Module):
    """uint8 images (N, H, W, 3) to probabilities (N, classes), normalisation inside.

    A distilled model gives the mean of both heads' softmax (arXiv:2012.12877 section 4, "joint classifiers") and then
    each head's own probabilities. timm and DeiT's own code average logits instead, which ranks some images differently.
    """

    def __init__(self, model: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = model
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        # (x / 255 - mean) / std as one multiplication and one addition
        self.register_buffer("scale", (1 / (255 * std)).view(1, 3, 1, 1))
        self.register_buffer("shift", (-mean / std).view(1, 3, 1, 1))
        self.scale: Tensor
        self.shift: Tensor

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in the order of `forward`."""
        if is_distilled(self.model):
            return PROBABILITIES, CLASS_PROBABILITIES, DISTILLATION_PROBABILITIES
        return (PROBABILITIES,)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        pixels = images.permute(0, 3, 1, 2).to(self.scale.dtype)
        class_logits, distillation_logits = head_logits(self.model, pixels * self.scale + self.shift)
        class_probabilities = class_logits.softmax(dim=-1)
        if distillation_logits is None:
            return (class_probabilities,)
        distillation_probabilities = distillation_logits.softmax(dim=-1)
        joint = (class_probabilities + distillation_probabilities) / 2
        return joint, class_probabilities, distillation_probabilities
