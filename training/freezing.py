"""Freezes the first layers of a pretrained model, in timm's groups: stem, blocks, heads."""

from timm.models import group_parameters
from torch import nn

from deit.errors import TrainingError


def freeze(model: nn.Module, blocks: str) -> str:
    """Freeze the stem and the first blocks of a timm model, and return what was done, as a sentence.

    Args:
        blocks: how many, or `all`, after which only the heads are trained. A distillation token is trained too, because
            it may be new: for its gradient the backward pass runs through frozen blocks.

    Raises:
        TrainingError: the model has fewer blocks, or timm knows no groups of its layers.
    """
    groups: dict[int, list[str]] = {}
    for name, group in layer_groups(model, "--freeze-blocks").items():
        groups.setdefault(group, []).append(name)
    depth = max(groups) - 1  # the last group are the heads
    count = depth if blocks == "all" else int(blocks)
    if count > depth:
        raise TrainingError(f"--freeze-blocks {blocks}: the model has {depth} blocks; give at most {depth}, or all")
    parameters = dict(model.named_parameters())
    for group in range(count + 1):
        for name in groups[group]:
            parameters[name].requires_grad_(name == "dist_token")
    trained = sum(parameter.numel() for parameter in parameters.values() if parameter.requires_grad)
    return f"stem and {count} of {depth} blocks are frozen: {trained:,} parameters are trained"


def layer_groups(model: nn.Module, option: str) -> dict[str, int]:
    """timm's group of each parameter: 0 for the stem, then the blocks, then the heads.

    Raises:
        TrainingError: timm knows none for this model.
    """
    if not hasattr(model, "group_matcher"):
        raise TrainingError(f"{option}: timm knows no groups of layers of {type(model).__name__}: leave it out")
    groups: dict[str, int] = group_parameters(model, model.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
    return groups


def to_training(model: nn.Module) -> None:
    """Set the model to training mode, but not its frozen parts: their batch statistics, drop path and dropout."""
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()
