"""The checkpoint folders and the numbers that an epoch writes."""

from training.checkpoint import save_checkpoint
from training.config import TrainConfig
from training.evaluate import Evaluation
from training.learner import Learner
from training.splits import Splits


def save_checkpoints(
    config: TrainConfig,
    learner: Learner,
    splits: Splits,
    evaluations: dict[str, dict[str, Evaluation]],
    epochs: int,
) -> None:
    """Save a folder for each evaluated model: the student and the average of its weights. Their metrics are those on
    the test images, if these were evaluated.
    """
    for split in list(evaluations)[-1:]:
        for name in evaluations[split]:
            save_as(config, learner, splits, f"checkpoint{name.replace('_', '-')}", name, split, evaluations, epochs)


def save_as(
    config: TrainConfig,
    learner: Learner,
    splits: Splits,
    folder: str,
    name: str,
    split: str,
    evaluations: dict[str, dict[str, Evaluation]],
    epochs: int,
) -> None:
    """Save the model of that name with its metrics on a split."""
    save_checkpoint(
        config.folder / folder,
        learner.evaluated()[name],
        label_names=splits.label_names,
        preprocessing=splits.preprocessing,
        deit={
            "recipe": config.settings,
            "teacher": config.teacher,
            "distillation": config.distillation,
            "epoch": epochs,
            "metrics_of": split,
            "metrics": evaluations[split][name].accuracy,
        },
    )


def flat_numbers(evaluations: dict[str, dict[str, Evaluation]]) -> dict[str, float]:
    """The numbers of evaluations by split and model, named as in metrics.jsonl, such as test_ema_joint_top1."""
    return {
        f"{split}{model}_{key}": round(value, 5)
        for split, by_model in evaluations.items()
        for model, evaluation in by_model.items()
        for key, value in evaluation.numbers().items()
    }
