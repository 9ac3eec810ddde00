"""The learning rate of each step: linear warm-up, then a cosine, both within the run's epochs."""

from collections.abc import Callable

from timm.scheduler import create_scheduler_v2
from torch.optim import Optimizer

from training.config import TrainConfig


def learning_rate_schedule(
    optimizer: Optimizer, config: TrainConfig, steps_per_epoch: int
) -> Callable[[int, int], None]:
    """A function of (epoch, step in the epoch) that sets the optimiser's learning rate.

    With --schedule official it moves once an epoch and one epoch late, because DeiT's code steps the schedule after an
    epoch with the number of the epoch that ended: epochs 0 and 1 both run at the warm-up's start.
    https://github.com/facebookresearch/deit/blob/main/main.py
    """
    by_epoch = config.schedule == "official"
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=config.epochs,
        warmup_epochs=config.warmup_epochs,
        warmup_lr=config.warmup_learning_rate,
        min_lr=config.min_learning_rate,
        step_on_epochs=by_epoch,
        updates_per_epoch=steps_per_epoch,
    )

    def set_learning_rate(epoch: int, step: int) -> None:
        if by_epoch:
            scheduler.step(max(epoch - 1, 0))
        else:
            scheduler.step_update(epoch * steps_per_epoch + step)

    return set_learning_rate
