"""Evaluates a checkpoint for `deit evaluate`."""

import logging
from dataclasses import dataclass, replace

from torch import nn

from deit.errors import CheckpointError, TrainingError
from deit.preprocessing import Preprocessing
from training.data import CorruptImages, evaluation_batches
from training.evaluate import Evaluation, evaluate
from training.evaluate_config import EvaluateConfig
from training.images import LabelledImages, open_images
from training.initial import load_initial, read_weights
from training.model import Normalize, create_model, load_teacher, open_model, timm_preprocessing
from training.processes import choose_device, joined_processes
from training.real_labels import real_labels

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CheckpointEvaluation:
    """Everything that `deit evaluate` prints."""

    checkpoint: str
    model: str
    preprocessing: Preprocessing
    evaluation: Evaluation
    corrupt_images: int


def evaluate_checkpoint(config: EvaluateConfig) -> CheckpointEvaluation | None:
    """The report, or None in all of torchrun's processes but the first."""
    device = choose_device(config.device)
    images = open_images(config.data, "test")
    model, preprocessing, label_names = _open(config, images)
    if config.crop_pct is not None:
        preprocessing = replace(preprocessing, crop_pct=config.crop_pct)
    if model.num_classes != len(images.label_names):
        raise TrainingError(
            f"{config.checkpoint} decides among {model.num_classes} classes, {config.data} has "
            f"{len(images.label_names)}"
        )
    if label_names is not None and label_names != images.label_names:
        logger.warning(
            "%s calls its first class %r, %s calls it %r: classes are compared by their index",
            *(config.checkpoint, label_names[0], config.data, images.label_names[0]),
        )
    teacher = None
    if config.teacher is not None:
        names = images.label_names if label_names is None else label_names
        teacher = load_teacher(config.teacher, label_names=names, student=preprocessing).to(device)
    real = real_labels(images) if config.real else None
    model, normalize = model.to(device), Normalize(preprocessing).to(device)

    with joined_processes(device) as processes:
        batches = evaluation_batches(
            images, preprocessing, batch_size=config.batch_size, workers=config.workers, processes=processes
        )
        corrupt = CorruptImages(images, config.max_corrupt_share)
        evaluation = evaluate(
            model, batches, normalize, device, corrupt=corrupt, processes=processes, teacher=teacher, real=real
        )
        corrupt.add(processes.union(corrupt.indices))
        if not processes.is_first:
            return None
    return CheckpointEvaluation(
        checkpoint=config.checkpoint,
        model=str(model.pretrained_cfg["architecture"]),  # type: ignore[index]
        preprocessing=preprocessing,
        evaluation=evaluation,
        corrupt_images=len(corrupt.indices),
    )


def _open(config: EvaluateConfig, images: LabelledImages) -> tuple[nn.Module, Preprocessing, tuple[str, ...] | None]:
    if config.model is None:
        return open_model(config.checkpoint, "--checkpoint")
    state, _ = read_weights(config.checkpoint)
    if "head.weight" not in state:
        raise CheckpointError(f"{config.checkpoint} has no head.weight: it is not a classifier in DeiT's layout")
    model = create_model(
        config.model, num_classes=len(state["head.weight"]), image_size=None, drop_path=0, model_args={}
    )
    for change in load_initial(model, config.checkpoint, label_names=images.label_names, antialias=False):
        logger.warning("%s", change)
    return model.eval(), timm_preprocessing(model), None
