"""Evaluates a checkpoint for `deit evaluate`."""

import logging
from dataclasses import dataclass, replace

import numpy as np

from deit.errors import TrainingError
from deit.preprocessing import Preprocessing
from training.columns import Columns
from training.data import CorruptImages, evaluation_batches
from training.evaluate import Evaluation, evaluate
from training.evaluate_config import EvaluateConfig
from training.images import LabelledImages, SomeImages, open_images
from training.model import Normalize, load_teacher
from training.opening import open_model
from training.processes import choose_device, joined_processes
from training.real_labels import real_labels
from training.splits import held_out

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CheckpointEvaluation:
    """The report that `deit evaluate` prints."""

    checkpoint: str
    model: str
    preprocessing: Preprocessing
    evaluation: Evaluation
    corrupt_images: int


def evaluate_checkpoint(config: EvaluateConfig) -> CheckpointEvaluation | None:
    """The report, or None in all of torchrun's processes but the first."""
    device = choose_device(config.device)
    images: LabelledImages
    columns = Columns(config.image_column, config.label_column)
    if config.val_share:
        _, images = held_out(open_images(config.data, "train", columns), config.val_share)
    else:
        images = open_images(config.data, config.split, columns)
    trained = open_model(config.checkpoint, "--checkpoint", architecture=config.architecture)
    model, preprocessing, label_names = trained.model, trained.preprocessing, trained.label_names
    if config.crop_pct is not None:
        preprocessing = replace(preprocessing, crop_pct=config.crop_pct)
    if label_names != images.label_names and set(images.label_names) <= set(
        label_names
    ):  # some of them, or in another order
        images = SomeImages(images, np.arange(len(images), dtype=np.int32), label_names)
    if model.num_classes != len(images.label_names):
        raise TrainingError(
            f"{config.checkpoint} decides among {model.num_classes} classes, {config.data} has "
            f"{len(images.label_names)}"
        )
    if label_names and label_names != images.label_names:
        logger.warning(
            "%s calls its first class %r, %s calls it %r: classes are compared by their index",
            *(config.checkpoint, label_names[0], config.data, images.label_names[0]),
        )
    teacher = None
    if config.teacher is not None:
        names = label_names or images.label_names
        teacher = load_teacher(config.teacher, label_names=names, student=preprocessing).to(device)
    real = real_labels(images) if config.real else None
    model, normalize = model.to(device), Normalize(preprocessing).to(device)

    with joined_processes(device) as processes:
        batches = evaluation_batches(
            images, preprocessing, batch_size=config.batch_size, workers=config.workers, processes=processes
        )
        corrupt = CorruptImages(images, config.max_corrupt_share)
        evaluation = evaluate(
            model,
            batches,
            normalize,
            device,
            corrupt=corrupt,
            processes=processes,
            teacher=teacher,
            real=real,
            label_names=images.label_names,
        )
        corrupt.add(processes.union(corrupt.indices))
        if not processes.is_first:
            return None
    return CheckpointEvaluation(
        checkpoint=config.checkpoint,
        model=trained.architecture,
        preprocessing=preprocessing,
        evaluation=evaluation,
        corrupt_images=len(corrupt.indices),
    )
