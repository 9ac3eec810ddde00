"""The served graph: pixels in, the joint probabilities of both heads out."""

import torch
from torch import Tensor, nn

from deit.errors import RepositoryError
from deit.model import CLASS_PROBABILITIES, DISTILLATION_PROBABILITIES, PROBABILITIES
from deit.preprocessing import Preprocessing
from export.confidence import calibrated
from training.model import head_logits, is_distilled


class JointClassifier(nn.Module):
    """uint8 images (N, H, W, 3) to probabilities (N, classes), normalisation inside.

    A distilled model gives the mean of both heads' softmax (arXiv:2012.12877 section 4, "joint classifiers") and then
    each head's own probabilities. timm and DeiT's own code average logits instead, which ranks some images differently;
    that is the read-out "joint-logit".

    Attributes:
        fitted: temperature and floor of `export.confidence`, applied to every output; None to leave them as they are.

    Raises:
        RepositoryError: the model has no heads for the read-out.
    """

    def __init__(self, model: nn.Module, preprocessing: Preprocessing, readout: str | None = None) -> None:
        super().__init__()
        self.readout = readout or ("joint-probability" if is_distilled(model) else "class")
        if self.readout != "class" and not is_distilled(model):
            raise RepositoryError(f"--readout {readout} needs a distillation head, which this model lacks")
        self.model = model
        self.fitted: tuple[float, float] | None = None
        self.normalises = True  # unless that is folded into the model, which then takes pixels 0..255 as they come
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
        return self.outputs(*head_logits(self.model, self.pixels(images)))

    def pixels(self, images: Tensor) -> Tensor:
        """The model's input for the images."""
        pixels = images.float()  # the cast first: TensorRT does nothing else with uint8
        return pixels.permute(0, 3, 1, 2) * self.scale + self.shift if self.normalises else pixels

    def outputs(self, class_logits: Tensor, distillation_logits: Tensor | None) -> tuple[Tensor, ...]:
        """The outputs by the heads' logits, (N, classes) each."""
        class_probabilities = class_logits.softmax(dim=-1)
        if distillation_logits is None:
            return self._fitted(class_probabilities)
        distillation_probabilities = distillation_logits.softmax(dim=-1)
        decision = {
            "joint-probability": lambda: (class_probabilities + distillation_probabilities) / 2,
            "joint-logit": lambda: ((class_logits + distillation_logits) / 2).softmax(dim=-1),
            # computed anew, because one tensor cannot be two outputs of a graph
            "class": lambda: class_logits.softmax(dim=-1),
            "distillation": lambda: distillation_logits.softmax(dim=-1),
        }[self.readout]()
        return self._fitted(decision, class_probabilities, distillation_probabilities)

    def _fitted(self, *outputs: Tensor) -> tuple[Tensor, ...]:
        return outputs if self.fitted is None else tuple(calibrated(each, *self.fitted) for each in outputs)
