"""A distilled DeiT of a few thousand weights."""

import pytest
import torch
from torch import nn

from deit.preprocessing import Preprocessing
from training.model import create_model


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Models of a few thousand weights lose more by waking threads than they gain."""
    torch.set_num_threads(1)


TINY = Preprocessing(
    image_size=16, crop_pct=1.0, interpolation="bicubic", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
TINY_ARGS = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}


def tiny_student(num_classes: int = 3) -> nn.Module:
    return create_model(
        "deit_tiny_distilled_patch16_224", num_classes=num_classes, image_size=16, drop_path=0, model_args=TINY_ARGS
    )
