"""ViTKD: a vision transformer learns from the features of another one (arXiv:2209.02432,
https://github.com/yzd-v/cls_KD).

Shallow layers are mimicked: the student's tokens, projected to the teacher's width, learn to match the teacher's. A
deep layer is generated: some of its tokens, chosen at random, are replaced by a mask token, and a small convnet on the
grid of patches learns to make the teacher's tokens from the rest. Class and distillation tokens are left out. The
parameters here serve only the loss and end with the run.

The released code divides the generation loss by the mask ratio, the paper's formula does not; this follows the code.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from deit.errors import TrainingError

FeaturePoint = Literal["ffn", "mha"]
FeatureReduction = Literal["sum", "mean"]
Features = tuple[Tensor, ...]
"""Patch tokens (N, patches, width), one tensor for each block that is read."""

OUTPUT = -1
"""The block whose feature is the network's output: after the final norm."""


@dataclass(frozen=True, kw_only=True)
class Taps:
    """Where features are read.

    Attributes:
        blocks: counted as Python counts: 0 is the first, -2 the last but one. Their feature is the residual stream, not
            normalised; that of -1 is the output of the network after its final norm.
        point: ffn: after the block. mha: in the block, after the attention's sum. -1 is the output in either case.
    """

    blocks: tuple[int, ...]
    point: FeaturePoint


def logits_and_features(
    model: VisionTransformer, images: Tensor, taps: Taps
) -> tuple[Tensor | tuple[Tensor, Tensor], Features]:
    """The result of `model(images)` and the features on its way, in one forward pass.

    The blocks are walked here instead of hooked, so that torch.compile takes it in one graph and processes that
    synchronise gradients see one forward.
    """
    tokens = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
    depth = len(model.blocks)
    wanted = {index % depth for index in taps.blocks}
    stream = {}
    for place, block in enumerate(model.blocks):
        attended = tokens + block.drop_path1(block.ls1(block.attn(block.norm1(tokens))))
        tokens = attended + block.drop_path2(block.ls2(block.mlp(block.norm2(attended))))
        if place in wanted:
            stream[place] = tokens if taps.point == "ffn" else attended
    output = model.norm(tokens)
    features = (output if index == OUTPUT else stream[index % depth] for index in taps.blocks)
    return model.forward_head(output), tuple(tokens[:, model.num_prefix_tokens :] for tokens in features)


def mimicking_loss(ours: Features, theirs: Features, reduction: FeatureReduction) -> Tensor:
    """Squared error in float32: summed over blocks, tokens and channels and averaged over images as published, or the
    mean of all.
    """
    error = torch.stack([(our.float() - their.float()).square().sum() for our, their in zip(ours, theirs, strict=True)])
    return error.sum() / (len(ours[0]) if reduction == "sum" else sum(their.numel() for their in theirs))


def generation_loss(
    generated: Tensor, theirs: Tensor, masked: Tensor, mask_ratio: float, reduction: FeatureReduction
) -> Tensor:
    """Squared error on the masked tokens alone, in float32: summed, averaged over images and divided by the mask ratio
    as published, or the mean over the masked elements.

    Args:
        generated, theirs: (N, patches, width).
        masked: bool (N, patches).
    """
    error = ((generated.float() - theirs.float()).square() * masked[..., None]).sum()
    return error / (len(theirs) * mask_ratio if reduction == "sum" else masked.sum() * theirs.shape[-1])


class Generator(nn.Module):
    """Generates the teacher's tokens from the student's, some of which are masked."""

    def __init__(self, student_width: int, width: int, grid: tuple[int, int], mask_ratio: float) -> None:
        super().__init__()
        self._grid = grid
        self._kept = int(grid[0] * grid[1] * (1 - mask_ratio))
        self.align = alignment(student_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.convolutions = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The generated tokens (N, patches, width), and which were masked, bool (N, patches).

        Masks are drawn from torch's generator, which the training loop seeds by the position in the run.
        """
        count, patches, _ = tokens.shape
        noise = torch.rand(count, patches, device=tokens.device)
        masked = noise.argsort(dim=1).argsort(dim=1) >= self._kept
        tokens = torch.where(masked[..., None], self.mask_token, self.align(tokens))
        grid = tokens.transpose(1, 2).reshape(count, -1, *self._grid)
        return self.convolutions(grid).flatten(2).transpose(1, 2), masked


class ViTKD(nn.Module):
    """The loss on features, with its parameters: projections, mask token, generator.

    Args:
        mimic, generate: blocks, as in Taps. The student may be less deep than the teacher.
        mask_ratio: share of the tokens that are masked for the generation.
        reduction: sum is the published one, whose weights 3e-5 and 3e-6 are for 196 tokens; the weights of mean do not
            depend on the number of tokens and their width.

    Raises:
        TrainingError: student and teacher do not fit together.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        mimic: tuple[int, ...],
        generate: tuple[int, ...],
        point: FeaturePoint,
        mask_ratio: float,
        reduction: FeatureReduction,
        mimic_weight: float,
        generate_weight: float,
    ) -> None:
        super().__init__()
        self.taps = Taps(blocks=(*mimic, *generate), point=point)
        grid = _common_grid(student, teacher, self.taps)
        patches = grid[0] * grid[1]
        if generate and int(patches * (1 - mask_ratio)) == patches:
            raise TrainingError(f"--vitkd-mask-ratio {mask_ratio:g} of {patches} tokens masks none: raise it")
        self._mask_ratio, self._reduction = mask_ratio, reduction
        self._mimic_weight, self._generate_weight = mimic_weight, generate_weight
        widths: tuple[int, int] = student.embed_dim, teacher.embed_dim  # type: ignore[assignment]
        self.aligns = nn.ModuleList(alignment(*widths) for _ in mimic)
        self.generators = nn.ModuleList(Generator(*widths, grid, mask_ratio) for _ in generate)

    def forward(self, ours: Features, theirs: Features) -> Tensor:
        """The weighted loss of a batch, from features in the order of `taps`."""
        mimicked = len(self.aligns)
        loss = ours[0].new_zeros((), dtype=torch.float32)
        if mimicked:
            projected = tuple(align(tokens) for align, tokens in zip(self.aligns, ours[:mimicked], strict=True))
            loss = loss + self._mimic_weight * mimicking_loss(projected, theirs[:mimicked], self._reduction)
        for generator, our, their in zip(self.generators, ours[mimicked:], theirs[mimicked:], strict=True):
            generated, masked = generator(our)
            loss = loss + self._generate_weight * generation_loss(
                generated, their, masked, self._mask_ratio, self._reduction
            )
        return loss


def alignment(student_width: int, teacher_width: int) -> nn.Module:
    """The projection to the teacher's width; none where the widths agree."""
    return nn.Identity() if student_width == teacher_width else nn.Linear(student_width, teacher_width)


def _common_grid(student: nn.Module, teacher: nn.Module, taps: Taps) -> tuple[int, int]:
    """Rows and columns of patches. Raises TrainingError if student and teacher do not fit together."""
    for role, model in (("student", student), ("teacher", teacher)):
        name = _name(model)
        if not isinstance(model, VisionTransformer) or not all(type(block) is Block for block in model.blocks):
            instead = "; --distillation nkd learns from a teacher of any kind" if role == "teacher" else ""
            raise TrainingError(
                f"--features vitkd: the {role} {name} is not a vision transformer of DeiT's kind, so its tokens "
                f"cannot be compared: take a deit or deit3 model{instead}"
            )
        if not isinstance(model.patch_drop, nn.Identity):
            raise TrainingError(f"--features vitkd: the {role} {name} drops patches: leave patch_drop_rate out")
        for block in taps.blocks:
            if not -len(model.blocks) <= block < len(model.blocks):
                raise TrainingError(
                    f"--features vitkd: the {role} {name} has no block {block}, but {len(model.blocks)} blocks: count "
                    f"from 0 to {len(model.blocks) - 1}, or from -1 backwards"
                )
    assert isinstance(student, VisionTransformer)  # checked above
    assert isinstance(teacher, VisionTransformer)
    grid: tuple[int, int] = student.patch_embed.grid_size
    if grid != (other := teacher.patch_embed.grid_size):
        size = grid[0] * teacher.patch_embed.patch_size[0]
        raise TrainingError(
            f"--features vitkd: the student {_name(student)} has {grid[0]} x {grid[1]} patches, the teacher "
            f"{_name(teacher)} {other[0]} x {other[1]}: give --teacher-image-size {size}"
        )
    return grid


def _name(model: nn.Module) -> str:
    return str(model.pretrained_cfg["architecture"])  # type: ignore[index]
