"""How much arithmetic one image takes, so that a rate can be told as a share of what the machine can do at most."""

import copy
from pathlib import Path

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from deit.checkpoint import read_checkpoint_config
from deit.errors import BenchmarkError
from training.checkpoint import load_checkpoint
from training.model import timm_preprocessing


def pytorch_model(name: str) -> tuple[nn.Module, int]:
    """A model in evaluation mode and the side of its images in pixels.

    Args:
        name: a checkpoint folder, or timm's name, whose weights are then random: they do not change the time.

    Raises:
        BenchmarkError: it is neither.
    """
    if Path(name).is_dir():
        return load_checkpoint(Path(name)).eval(), read_checkpoint_config(Path(name)).preprocessing.image_size
    if not timm.is_model(name):
        raise BenchmarkError(f"{name!r} is neither a checkpoint folder nor a model of timm {timm.__version__}")
    model: nn.Module = timm.create_model(name).eval()
    return model, timm_preprocessing(model).image_size


@torch.inference_mode()
def gflop_per_image(model: nn.Module, image_size: int) -> float:
    """Of matrix products and convolutions alone, a multiplication with its addition as two operations."""
    shapes = copy.deepcopy(model).to("meta")
    for module in shapes.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", False)  # noqa: B010  so that its products are counted one by one
    with FlopCounterMode(display=False) as counter:
        shapes(torch.empty(1, 3, image_size, image_size, device="meta"))
    return float(counter.get_total_flops()) / 1e9
