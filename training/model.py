"""Students and teachers, made by timm, and the two heads of a distilled DeiT."""

import logging
from collections import Counter
from dataclasses import replace
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.layers import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from deit.errors import TrainingError
from deit.preprocessing import Preprocessing
from training.class_names import composed
from training.features import Features, Taps, logits_and_features
from training.opening import TrainedModel, open_model

logger = logging.getLogger(__name__)


def create_model(
    architecture: str, *, num_classes: int, image_size: int | None, drop_path: float, model_args: dict[str, Any]
) -> nn.Module:
    """A model with random weights; `model_args` go to timm's `create_model`. Without a size it is the architecture's.

    The class token starts from a normal distribution of std 0.02 as in DeiT; timm 1.0.31 uses 1e-6.

    Raises:
        TrainingError: timm does not know the architecture or refuses an argument, or the model does not read RGB images
            of this size.
    """
    defaults = timm.get_pretrained_cfg(architecture, allow_unregistered=True) if timm.is_model(architecture) else None
    if defaults is None:
        raise TrainingError(
            f"timm {timm.__version__} has no model {architecture!r}; `timm.list_models('deit*')` lists the DeiT ones"
        )
    # a convnet takes any size and no such argument
    size = {"img_size": image_size} if defaults.fixed_input_size and image_size is not None else {}
    try:
        model: nn.Module = timm.create_model(
            architecture, num_classes=num_classes, drop_path_rate=drop_path, **{**size, **model_args}
        )
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise TrainingError(f"timm cannot make {architecture} with {model_args or 'its defaults'}: {error}") from error
    _try_one_image(model, architecture, image_size or defaults.input_size[-1])
    if isinstance(model, VisionTransformer) and model.cls_token is not None:
        nn.init.trunc_normal_(model.cls_token, std=0.02)
    return model


@torch.no_grad()
def _try_one_image(model: nn.Module, architecture: str, image_size: int) -> None:
    """Raises TrainingError if the model does not read all of an RGB square of this size."""
    if isinstance(model, VisionTransformer) and not getattr(model.patch_embed, "dynamic_img_pad", False):
        patch = int(model.patch_embed.patch_size[0])
        if image_size % patch:  # timm's patches leave the last rows and columns out
            below = image_size // patch * patch
            sizes = " or ".join(str(size) for size in (below, below + patch) if size)
            raise TrainingError(
                f"{architecture} reads patches of {patch} x {patch} pixels, which do not fill images of {image_size} x "
                f"{image_size}: give --image-size {sizes}, or another patch_size"
            )
    device = next(model.parameters()).device
    try:
        model.eval()(torch.zeros(1, 3, image_size, image_size, device=device))
    except (AssertionError, RuntimeError, ValueError, IndexError) as error:
        raise TrainingError(
            f"{architecture} as it is set up cannot read RGB images of {image_size} x {image_size} pixels: {error}. "
            "Check --image-size and --model-arg."
        ) from error
    model.train()


def choose_attention(model: nn.Module, device: torch.device, precision: torch.dtype) -> None:
    """Compute attention as separate products where torch's fused kernel is the slower one: in bf16 on a CPU.

    Its backward pass takes two thirds of a step there (torch 2.14.1, one thread of a processor with AMX): without it a
    step is 2.8 times as fast at 17 tokens, 1.4 times at 197. In fp32 the fused kernel is the faster one at 197.
    """
    if device.type == "cpu" and precision == torch.bfloat16:
        for module in model.modules():
            if isinstance(module, Attention):
                module.fused_attn = False


def is_distilled(model: nn.Module) -> bool:
    """Whether the model has a distillation token with its own head."""
    return isinstance(model, VisionTransformerDistilled)


def head_logits(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Logits of the class head and, for a distilled model, of the distillation head, each (N, classes).

    timm's own forward averages both in evaluation. Args: normalised images (N, 3, H, W).
    """
    if not isinstance(model, VisionTransformerDistilled):
        return model(images), None
    tokens = model.forward_features(images)
    return model.head(tokens[:, 0]), model.head_dist(tokens[:, 1])


class Normalize(nn.Module):
    """uint8 images (N, 3, H, W) to floats with the given mean and standard deviation, per channel of pixels in 0..1."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, images: Tensor) -> Tensor:
        # in place: three times as fast on a CPU, where fresh memory costs more than the arithmetic
        return images.to(torch.float32, copy=True).div_(255).sub_(self.mean).div_(self.std)


class Teacher(nn.Module):
    """A frozen model that labels the student's batches, whatever resolution and statistics it was trained with.

    It sees the student's augmented, erased and mixed images (the paper's setting), converted to its own normalisation
    and resized to its own resolution.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        preprocessing: Preprocessing,
        student: Preprocessing,
        classes: tuple[int, ...] | None = None,
    ) -> None:
        """Args: classes: the indices of the student's classes among the model's, if they are not the same."""
        super().__init__()
        self.name = name
        self.register_buffer("_classes", None if classes is None else torch.tensor(classes), persistent=False)
        self._classes: Tensor | None
        self.model = model.requires_grad_(False)
        self._image_size = preprocessing.image_size
        # (x * std_s + mean_s - mean_t) / std_t as one multiplication and addition
        student_mean, student_std = torch.tensor(student.mean), torch.tensor(student.std)
        mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
        self.register_buffer("_scale", (student_std / std).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("_shift", ((student_mean - mean) / std).view(1, 3, 1, 1), persistent=False)
        self._scale: Tensor
        self._shift: Tensor
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        """A teacher stays in evaluation mode: batch statistics and drop-path must not move with the student's
        batches.
        """
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes) for images normalised for the student, (N, 3, H, W)."""
        return self._of_the_student(self.model(self._view(images)))

    @torch.no_grad()
    def with_features(self, images: Tensor, taps: Taps) -> tuple[Tensor, Features]:
        """The same logits, and the features where the taps are; for a vision transformer."""
        logits, features = logits_and_features(self.model, self._view(images), taps)
        assert isinstance(logits, Tensor)  # of both heads it gives the mean, in evaluation mode
        return self._of_the_student(logits), features

    def _of_the_student(self, logits: Tensor) -> Tensor:
        """The logits of the student's classes, in its order."""
        return logits if self._classes is None else logits[:, self._classes]

    def _view(self, images: Tensor) -> Tensor:
        """The images, converted to the form that this model expects."""
        images = images * self._scale + self._shift
        if images.shape[-1] != self._image_size:
            images = F.interpolate(images, size=(self._image_size, self._image_size), mode="bicubic")
        return images


def load_teacher(
    spec: str, *, label_names: tuple[str, ...], student: Preprocessing, image_size: int | None = None
) -> Teacher:
    """The teacher of that name, as training.opening understands it.

    Args:
        image_size: side of the images it reads; its own when None. A transformer's positions are resized for it.

    Raises:
        CheckpointError: it cannot be opened.
        TrainingError: it does not know all classes of the student. Its head is never replaced silently.
    """
    trained = open_model(spec, "--teacher")
    model, preprocessing = trained.model, trained.preprocessing
    classes = _classes_of(trained, label_names, spec)
    if image_size is not None and image_size != preprocessing.image_size:
        if isinstance(model, VisionTransformer):
            model.set_input_size(img_size=image_size)
        elif model.pretrained_cfg["fixed_input_size"]:  # type: ignore[index]
            raise TrainingError(f"the teacher {spec} reads only images of {preprocessing.image_size} pixels")
        preprocessing = replace(preprocessing, image_size=image_size)
    return Teacher(spec, model, preprocessing, student, classes)


def _classes_of(teacher: TrainedModel, label_names: tuple[str, ...], spec: str) -> tuple[int, ...] | None:
    """The indices of the data's classes among the teacher's, found by name; None if they are the same.

    A model without names of its classes is ImageNet's if the data's are all WordNet ids of ImageNet.
    """
    names, num_classes = teacher.label_names, int(teacher.model.num_classes)  # type: ignore[arg-type]
    if not names and (subset := infer_imagenet_subset(teacher.model)) is not None:
        known = tuple(ImageNetInfo(subset).label_names())
        names = known if set(label_names) <= set(known) else ()
    if not names and num_classes != len(label_names):
        raise TrainingError(
            f"the teacher {spec} has {num_classes} classes without names, but the data has {len(label_names)}: "
            "take a teacher trained on this data (`deit train` without --teacher trains one)"
        )
    if not names or names == label_names:
        return None
    places = {composed(name): place for place, name in enumerate(names)}
    wanted = [composed(name) for name in label_names]
    if missing := tuple(name for name in label_names if composed(name) not in places):
        raise TrainingError(
            f"the teacher {spec} has the classes {_some(names)} and lacks the data's "
            f"{', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}: take a teacher whose classes include all "
            "of the data's by name"
        )
    for side, its in (("the teacher", list(map(composed, names))), ("the data", wanted)):
        name, count = Counter(its).most_common(1)[0]
        if count > 1:
            raise TrainingError(f"{side} has {count} classes named {name}, and {spec} answers by name: rename them")
    logger.info("the teacher %s uses %d of its %d classes, matched by name", spec, len(wanted), len(names))
    return tuple(places[name] for name in wanted)


def _some(names: tuple[str, ...]) -> str:
    return f"{len(names)} classes ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
