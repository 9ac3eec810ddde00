"""Table 5 of DeiT's paper (arXiv:2012.12877, second version), to compare with what is measured.

Throughput is for one V100 with 16 GB in float32, at the largest batch that fits, as the mean of 30 runs. Use it to rank
models, not to predict the speed of another machine. docs/paper.md has the paper's other tables.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """A row of table 5. `top1`, `real` and `v2` are percentages; None where the paper has none."""

    name: str
    timm: str
    image_size: int
    images_per_s: float
    top1: float
    real: float | None
    v2: float | None


TABLE_5 = (
    Published("ResNet-18", "resnet18", 224, 4458.4, 69.8, 77.3, 57.1),
    Published("ResNet-50", "resnet50", 224, 1226.1, 76.2, 82.5, 63.3),
    Published("ResNet-101", "resnet101", 224, 753.6, 77.4, 83.7, 65.7),
    Published("ResNet-152", "resnet152", 224, 526.4, 78.3, 84.1, 67.0),
    Published("RegNetY-4GF", "regnety_040", 224, 1156.7, 80.0, 86.4, 69.4),
    Published("RegNetY-8GF", "regnety_080", 224, 591.6, 81.7, 87.4, 70.8),
    Published("RegNetY-16GF", "regnety_160", 224, 334.7, 82.9, 88.1, 72.4),
    Published("EfficientNet-B0", "efficientnet_b0", 224, 2694.3, 77.1, 83.5, 64.3),
    Published("EfficientNet-B1", "efficientnet_b1", 240, 1662.5, 79.1, 84.9, 66.9),
    Published("EfficientNet-B2", "efficientnet_b2", 260, 1255.7, 80.1, 85.9, 68.8),
    Published("EfficientNet-B3", "efficientnet_b3", 300, 732.1, 81.6, 86.8, 70.6),
    Published("EfficientNet-B4", "efficientnet_b4", 380, 349.4, 82.9, 88.0, 72.3),
    Published("EfficientNet-B5", "efficientnet_b5", 456, 169.1, 83.6, 88.3, 73.6),
    Published("EfficientNet-B6", "efficientnet_b6", 528, 96.9, 84.0, 88.8, 73.9),
    Published("EfficientNet-B7", "efficientnet_b7", 600, 55.1, 84.3, None, None),
    Published("ViT-B/16", "vit_base_patch16_384", 384, 85.9, 77.9, 83.6, None),
    Published("ViT-L/16", "vit_large_patch16_384", 384, 27.3, 76.5, 82.2, None),
    Published("DeiT-Ti", "deit_tiny_patch16_224", 224, 2536.5, 72.2, 80.1, 60.4),
    Published("DeiT-S", "deit_small_patch16_224", 224, 940.4, 79.8, 85.7, 68.5),
    Published("DeiT-B", "deit_base_patch16_224", 224, 292.3, 81.8, 86.7, 71.5),
    Published("DeiT-B↑384", "deit_base_patch16_384", 384, 85.9, 83.1, 87.7, 72.4),
    Published("DeiT-Ti⚗", "deit_tiny_distilled_patch16_224", 224, 2529.5, 74.5, 82.1, 62.9),
    Published("DeiT-S⚗", "deit_small_distilled_patch16_224", 224, 936.2, 81.2, 86.8, 70.0),
    Published("DeiT-B⚗", "deit_base_distilled_patch16_224", 224, 290.9, 83.4, 88.3, 73.2),
    Published("DeiT-B⚗↑384", "deit_base_distilled_patch16_384", 384, 85.8, 84.5, 89.0, 74.8),
)


def published(timm_name: object) -> Published | None:
    """The row of a model by timm's name, with or without a tag."""
    architecture = str(timm_name).partition(".")[0]
    return next((row for row in TABLE_5 if row.timm == architecture), None)
