"""Evaluates a checkpoint for `deit evaluate`."""

from dataclasses import dataclass, replace

from deit.errors import TrainingError
from deit.preprocessing import Preprocessing
from training.columns import Columns
from training.data import CorruptImages, evaluation_batches
from training.evaluate import Evaluation, evaluate
from training.evaluate_config import EvaluateConfig
from training.images import LabelledImages, open_images, with_classes_of
from training.model import Normalize, load_teacher
from training.opening import open_model
from training.processes import choose_device, joined_processes
from training.real_labels import real_labels
from training.splits import held_out


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
        _, images = held_out(config.data, config.val_share, columns)
    else:
        images = open_images(config.data, config.split or "test", columns)
    trained = open_model(config.checkpoint, "--checkpoint", architecture=config.architecture)
    model, preprocessing, label_names = trained.model, trained.preprocessing, trained.label_names
    if config.crop_pct is not None:
        preprocessing = replace(preprocessing, crop_pct=config.crop_pct)
    images = with_classes_of(label_names, images)
    if model.num_classes != len(images.label_names):
        raise TrainingError(
            f"{config.checkpoint} has {model.num_classes} classes, but {config.data} has {len(images.label_names)}"
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
