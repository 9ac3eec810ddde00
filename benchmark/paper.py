"""What DeiT's paper reports (arXiv:2012.12877, second version), to compare with what is measured here.

Its throughput is that of one V100 with 16 GB in float32, at the largest batch that fits, as the mean of 30 runs. It
ranks models, and says nothing about another machine.
"""

from dataclasses import dataclass

from benchmark.table import Table


@dataclass(frozen=True)
class Published:
    """A row of table 5. `top1`, `real` and `v2` are percentages; None where the paper has none."""

    name: str
    timm: str | None
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

TEACHERS = Table(
    "The paper's teachers",
    ("teacher of DeiT-B", "teacher: top-1", "student: top-1", "student at 384: top-1"),
    (
        ("DeiT-B", "81.8", "81.9", "83.1"),
        ("RegNetY-4GF", "80.0", "82.7", "83.6"),
        ("RegNetY-8GF", "81.7", "82.7", "83.8"),
        ("RegNetY-12GF", "82.4", "83.0", "83.9"),
        ("RegNetY-16GF", "82.9", "83.0", "84.0"),
    ),
    "ImageNet, %; table 2 as printed in PMLR 139. arXiv's second version has 83.1 and 84.1 for 12GF, 83.1 and 84.2 "
    "for 16GF. `deit train --preset deit-b-distilled --teacher …`, then `deit train --preset deit-b-384-distilled`. Of "
    "these teachers 16GF alone was published with DeiT; `deit train --model regnety_040` trains another.",
)

STRATEGIES = Table(
    "The paper's strategies of distillation",
    ("method", "DeiT-Ti", "DeiT-S", "DeiT-B", "DeiT-B at 384"),
    (
        ("no distillation", "72.2", "79.8", "81.8", "83.1"),
        ("usual (soft) distillation", "72.2", "79.8", "81.8", "83.2"),
        ("hard distillation", "74.3", "80.9", "83.0", "84.0"),
        ("distillation token: class head", "73.9", "80.9", "83.0", "84.2"),
        ("distillation token: distillation head", "74.6", "81.1", "83.1", "84.4"),
        ("distillation token: both", "74.5", "81.2", "83.4", "84.5"),
    ),
    "ImageNet top-1, %, 300 epochs, teacher RegNetY-16GF; table 3. Runs of DeiT-B differ by 0.2 (its table 8). "
    "The options of each row are in docs/training.md, 'Distil'; for the last column they go with --preset deit-b-384 "
    "or deit-b-384-distilled.",
)

DISAGREEMENT = Table(
    "The paper's disagreement between deciders",
    ("", "ground truth", "convnet", "DeiT", "class head", "distillation head", "both"),
    (
        ("ground truth", "0.000", "0.171", "0.182", "0.170", "0.169", "0.166"),
        ("convnet (RegNetY)", "0.171", "0.000", "0.133", "0.112", "0.100", "0.102"),
        ("DeiT", "0.182", "0.133", "0.000", "0.109", "0.110", "0.107"),
        ("class head", "0.170", "0.112", "0.109", "0.000", "0.050", "0.033"),
        ("distillation head", "0.169", "0.100", "0.110", "0.050", "0.000", "0.019"),
        ("both", "0.166", "0.102", "0.107", "0.033", "0.019", "0.000"),
    ),
    "Share of ImageNet's validation images on which two disagree; table 4. `deit evaluate --data imagenet "
    "--checkpoint … --teacher regnety_160.deit_in1k` prints it.",
)

TRANSFER = Table(
    "The paper's transfer",
    ("model", "ImageNet", "CIFAR-10", "CIFAR-100", "Flowers", "Cars", "iNat-18", "iNat-19"),
    (
        ("EfficientNet-B7", "84.3", "98.9", "91.7", "98.8", "94.7", "", ""),
        ("ViT-B/32", "73.4", "97.8", "86.3", "85.4", "", "", ""),
        ("ViT-B/16", "77.9", "98.1", "87.1", "89.5", "", "", ""),
        ("ViT-L/32", "71.2", "97.9", "87.1", "86.4", "", "", ""),
        ("ViT-L/16", "76.5", "97.9", "86.4", "89.7", "", "", ""),
        ("DeiT-B", "81.8", "99.1", "90.8", "98.4", "92.1", "73.2", "77.7"),
        ("DeiT-B↑384", "83.1", "99.1", "90.8", "98.5", "93.3", "79.5", "81.4"),
        ("DeiT-B⚗", "83.4", "99.1", "91.3", "98.8", "92.9", "73.7", "78.4"),
        ("DeiT-B⚗↑384", "84.4", "99.2", "91.4", "98.9", "93.9", "80.1", "83.0"),
    ),
    "Top-1, %; table 7. Table 5 has 84.5 for DeiT-B⚗↑384 on ImageNet. DeiT-B: `deit train --preset transfer-cifar10` "
    "and so on, both iNat by transfer-inat; the other rows with the row's --model, --image-size, --initial-checkpoint "
    "and, for ⚗, --distillation hard and a teacher of the same data.",
)

LONG = Table(
    "The paper's 1000 epochs",
    ("model", "300 epochs", "1000 epochs", "ReaL", "V2", "options of `deit train`"),
    (
        ("DeiT-Ti⚗", "74.5", "76.6", "83.9", "65.4", "--preset deit-ti-distilled-1000"),
        ("DeiT-S⚗", "81.2", "82.6", "87.8", "71.7", "--preset deit-s-distilled-1000"),
        ("DeiT-B⚗", "83.4", "84.2", "88.7", "73.9", "--preset deit-b-distilled-1000"),
        (
            "DeiT-B⚗↑384",
            "84.5",
            "85.2",
            "89.3",
            "75.2",
            "--preset deit-b-384-distilled --initial-checkpoint runs/deit-b-1000/checkpoint",
        ),
    ),
    "ImageNet top-1, %; ReaL and V2 after 1000 epochs; table 5.",
)

ABLATION = Table(
    "The paper's ablation",
    ("change", "DeiT-B", "at 384", "options of `deit train`"),
    (
        ("none", "81.8", "83.1", "--preset deit-b"),
        ("SGD", "74.5", "77.3", "--preset deit-b --optimizer sgd"),
        ("SGD while fine-tuning", "81.8", "83.1", "--preset deit-b-384 --optimizer sgd"),
        ("no RandAugment", "79.6", "80.4", "--preset deit-b --auto-augment="),
        ("AutoAugment", "81.2", "81.9", "--preset deit-b --auto-augment original"),
        ("no Mixup", "78.7", "79.8", "--preset deit-b --mixup-alpha 0"),
        ("no CutMix", "80.0", "80.6", "--preset deit-b --cutmix-alpha 0"),
        ("no Mixup, no CutMix", "75.8", "76.7", "--preset deit-b --mixing-probability 0"),
        ("no random erasing", "4.3", "0.1", "--preset deit-b --random-erasing 0"),
        ("no stochastic depth", "3.4", "0.1", "--preset deit-b --drop-path 0"),
        ("no repeated augmentation", "76.5", "77.4", "--preset deit-b --repeated-augmentation 1"),
        ("dropout", "81.3", "83.1", "--preset deit-b --model-arg drop_rate=0.1"),
        ("weight average", "81.9", "83.1", "--preset deit-b"),
    ),
    "ImageNet top-1, %; table 8. The paper does not give the learning rates of SGD nor the rate of dropout. The runs "
    "without random erasing and without stochastic depth did not train properly. At 384: each row's weights through "
    "--preset deit-b-384. The preset also evaluates the average of the weights.",
)

RESOLUTION = Table(
    "The paper's fine-tuning resolutions",
    ("pixels", "ImageNet", "ReaL", "V2", "options of `deit train`"),
    (
        ("160", "79.9", "84.8", "67.6", "--preset deit-b-384 --model deit_base_patch16_224 --image-size 160"),
        ("224", "81.8", "86.7", "71.5", "--preset deit-b"),
        ("320", "82.7", "87.2", "71.9", "--preset deit-b-384 --model deit_base_patch16_224 --image-size 320"),
        ("384", "83.1", "87.7", "72.4", "--preset deit-b-384"),
    ),
    "DeiT-B, top-1, %; table 10.",
)


def published(timm_name: object) -> Published | None:
    """The row of a model by timm's name, with or without a tag."""
    architecture = str(timm_name).partition(".")[0]
    return next((row for row in TABLE_5 if row.timm == architecture), None)
