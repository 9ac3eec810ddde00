"""Weights to start from, adapted to a model with another resolution, other classes, other tokens or fewer blocks.

Nothing is changed silently: each change is logged, and anything else that does not fit is an error. DeiT's loader
silently drops what does not fit and loads the rest.
"""

import math
from pathlib import Path

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from deit.errors import CheckpointError
from training.checkpoint import load_weights
from training.opening import read_weights


def load_initial(model: nn.Module, spec: str, *, label_names: tuple[str, ...], antialias: bool) -> list[str]:
    """Load the weights that `spec` names, and return the changes that made them fit, a sentence each.

    Args:
        spec: as training.opening understands it.
        label_names: the classes the model will decide among.
        antialias: of the position embedding's bicubic resizing: timm's way. DeiT resizes without.

    Raises:
        CheckpointError: the weights cannot be found or read, or are those of another architecture.
    """
    state, names = read_weights(spec, "--initial-checkpoint")
    # weights are often distributed in half precision; resizing and joining below is in single precision
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    fresh = model.state_dict()
    changes = []
    if isinstance(model, VisionTransformer) and "pos_embed" in state:
        changes += _fit_positions(state, fresh, model, spec, antialias)
        changes += _fit_distillation(state, fresh)
        changes += _fit_depth(state, len(model.blocks))
    changes += _fit_heads(state, fresh, model)
    load_weights(model, state, source=Path(spec))
    if names and names != label_names and len(names) == len(label_names):
        changes.append(
            f"the head is kept, though it was trained on other classes ({names[0]}, …) than these ({label_names[0]}, …)"
        )
    return changes


def _fit_positions(
    state: dict[str, Tensor], fresh: dict[str, Tensor], model: VisionTransformer, spec: str, antialias: bool
) -> list[str]:
    """Resize the grid of the position embedding and give it the model's prefix tokens: class, distillation."""
    positions = state["pos_embed"]
    prefix, side = _layout(positions.shape[1], 2 if "dist_token" in state else 1, spec)
    new_prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    if prefix == 0 != new_prefix or new_prefix == 0 != prefix:
        return []  # load_weights reports that the shapes differ
    changes = []
    tokens, grid = positions[:, :prefix], positions[:, prefix:]
    new_side = model.patch_embed.grid_size[0]
    if side != new_side:
        grid = resample_abs_pos_embed(
            grid, [new_side, new_side], [side, side], num_prefix_tokens=0, antialias=antialias
        )
        changes.append(
            f"the position embedding is resized from {side} x {side} to {new_side} x {new_side} patches, bicubic "
            f"{'with' if antialias else 'without'} antialiasing, {min(prefix, new_prefix)} prefix positions kept"
        )
    if prefix < new_prefix:
        tokens = torch.cat([tokens, fresh["pos_embed"][:, prefix:new_prefix]], dim=1)
    state["pos_embed"] = torch.cat([tokens[:, :new_prefix], grid], dim=1)
    return changes


def _layout(positions: int, prefix_tokens: int, spec: str) -> tuple[int, int]:
    """Prefix positions and side of the patch grid; an embedding without prefix positions, as DeiT III's, has 0."""
    for prefix in (prefix_tokens, 0):
        side = math.isqrt(positions - prefix)
        if side * side == positions - prefix:
            return prefix, side
    raise CheckpointError(
        f"{spec} has {positions} positions, which with {prefix_tokens} prefix tokens are not a square grid of "
        "patches: it cannot be resized"
    )


def _fit_distillation(state: dict[str, Tensor], fresh: dict[str, Tensor]) -> list[str]:
    """Leave the distillation token out, or initialise it, together with its head."""
    if "dist_token" in state and "dist_token" not in fresh:
        for name in ("dist_token", "head_dist.weight", "head_dist.bias"):
            state.pop(name, None)
        return ["the distillation token, its position and its head are left out: the model has none"]
    if "dist_token" in fresh and "dist_token" not in state:
        for name in ("dist_token", "head_dist.weight", "head_dist.bias"):
            state[name] = fresh[name]
        return ["the distillation token, its position and its head are newly initialised: the weights have none"]
    return []


def _fit_depth(state: dict[str, Tensor], depth: int) -> list[str]:
    """Leave the last blocks of a deeper model out: the first ones matter most (arXiv:2004.03844, for text)."""
    blocks = {name: int(name.split(".")[1]) for name in state if name.startswith("blocks.")}
    given = max(blocks.values(), default=-1) + 1
    if given <= depth:
        return []  # load_weights reports what is missing
    for name, block in blocks.items():
        if block >= depth:
            del state[name]
    return [f"the last {given - depth} of {given} blocks are left out: the model has {depth}"]


def _fit_heads(state: dict[str, Tensor], fresh: dict[str, Tensor], model: nn.Module) -> list[str]:
    """Initialise a head for another number of classes."""
    heads = model.pretrained_cfg["classifier"]  # type: ignore[index]
    changes = []
    for head in (heads,) if isinstance(heads, str) else heads:
        weight = state.get(f"{head}.weight")
        if weight is None or weight.shape[0] == fresh[f"{head}.weight"].shape[0]:
            continue
        changes.append(
            f"{head} is newly initialised: it decided among {weight.shape[0]} classes, now among "
            f"{fresh[f'{head}.weight'].shape[0]}"
        )
        state |= {name: fresh[name] for name in (f"{head}.weight", f"{head}.bias") if name in fresh}
    return changes
