"""A second graph that explains a model: where both tokens look, and their features.

Where a token looks is found by attention rollout (Abnar and Zuidema, arXiv:2005.00928): each block passes on half
through its attention, averaged over the heads, and half through the residual connection, and the product over all
blocks traces a final token back to the patches. It gives one map per token and needs neither gradients nor a class.
"""

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from deit.errors import RepositoryError
from deit.model import CLASS_FEATURES, CLASS_RELEVANCE, DISTILLATION_FEATURES, DISTILLATION_RELEVANCE
from export.joint import JointClassifier
from export.served import ServedBlock, served_form


class ExplainedClassifier(nn.Module):
    """uint8 images (N, H, W, 3) to what `JointClassifier` gives, and then for each token

    - its relevance, float32 (N, rows, columns): the share of each patch in it, by attention rollout;
    - its features, float32 (N, width): what its head reads, after the last norm.

    In float32, whatever precision the model is served in.

    Raises:
        RepositoryError: the model is not a ViT with blocks as DeiT's, or its head does not read a token as it is.
    """

    def __init__(self, classifier: JointClassifier) -> None:
        super().__init__()
        self.classifier = served_form(classifier)
        model = self.model = self.classifier.model
        if (
            not isinstance(model, VisionTransformer)
            or model.global_pool != "token"
            or not isinstance(model.fc_norm, nn.Identity)
            or not all(isinstance(block, ServedBlock) for block in model.blocks)
        ):
            raise RepositoryError(
                "--explain needs a ViT built as DeiT is, with a class token and without further norms, and this "
                f"{type(model).__name__} is not: leave --explain out"
            )
        self.grid: tuple[int, int] = classifier.model.patch_embed.grid_size  # type: ignore[union-attr, assignment]
        names = CLASS_RELEVANCE, DISTILLATION_RELEVANCE, CLASS_FEATURES, DISTILLATION_FEATURES
        is_distilled = isinstance(model, VisionTransformerDistilled)
        self.further_outputs = {
            name: self.grid if name in names[:2] else (model.embed_dim,)
            for name in (names if is_distilled else names[::2])
        }

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in the order of `forward`."""
        return *self.classifier.output_names, *self.further_outputs

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        model = self.model
        assert isinstance(model, VisionTransformer)
        tokens = model.norm_pre(model._pos_embed(model.patch_embed(self.classifier.pixels(images))))
        attentions = []
        for block in model.blocks:
            tokens, attention = block.attended(tokens)
            attentions.append(attention.mean(dim=1))
        tokens = model.norm(tokens)
        if isinstance(model, VisionTransformerDistilled):
            logits = model.head(tokens[:, 0]), model.head_dist(tokens[:, 1])
        else:
            logits = model.forward_head(tokens), None
        relevance = rollout(attentions)[:, :, model.num_prefix_tokens :]
        count = len(self.further_outputs) // 2
        return (
            *self.classifier.outputs(*logits),
            *(relevance[:, token].reshape(-1, *self.grid) for token in range(count)),
            *(tokens[:, token] for token in range(count)),
        )


def rollout(attentions: list[Tensor]) -> Tensor:
    """The share of each token at the beginning in those that the last block gives, (N, given, tokens).

    Args:
        attentions: of each block, (N, tokens, tokens); of the last perhaps only the rows of the first tokens.
    """
    *others, last = attentions
    rows = (last + torch.eye(last.shape[1], last.shape[2])) / 2
    for attention in reversed(others):
        rows = (rows @ attention + rows) / 2
    return rows
