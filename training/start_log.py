"""What a run logs about itself before its first step."""

import logging

import torch

from training.config import TrainConfig
from training.learner import Learner
from training.preset import read_preset
from training.sampler import Shares
from training.splits import Splits

logger = logging.getLogger(__name__)


def log_start(config: TrainConfig, learner: Learner, splits: Splits, shares: Shares, device: torch.device) -> None:
    """Log the run's model, data and batch, and the learning rate, which recipes scale in different ways."""
    logger.info(
        "%s: %.2f M parameters on %s in %s; %d training images, %d classes; teacher %s",
        config.model,
        sum(parameter.numel() for parameter in learner.model.parameters()) / 1e6,
        device,
        learner.precision,
        len(splits.train),
        len(splits.label_names),
        config.teacher,
    )
    logger.info(
        "a step: %d images = %d on a device x %d processes x %d in turn; %d steps an epoch, %d epochs",
        config.batch_size,
        config.batch_size // shares.parts,
        shares.processes,
        shares.accumulation,
        len(splits.train) // config.batch_size,
        config.epochs,
    )
    logger.info(
        "peak learning rate %g for the whole batch, not scaled; DeiT's code takes --lr %g and scales it by %d/512",
        config.learning_rate,
        config.learning_rate * 512 / config.batch_size,
        config.batch_size,
    )
    if learner.ema is not None:
        steps = len(splits.train) // config.batch_size * config.epochs
        logger.info(
            "the weight average's decay reaches %g at step %d; this run of %d steps ends with %.6g",
            *(learner.ema.decay, learner.ema.warmed_at(), steps, learner.ema.get_decay(steps)),
        )
    if config.preset is not None:
        recipe = read_preset(config.preset)
        for_batch = recipe.get("batch_size", config.batch_size)
        if config.batch_size != for_batch and config.learning_rate == recipe.get("learning_rate"):
            logger.warning(
                "learning rate %g is for the preset's batch of %d; DeiT's rule gives %g for %d",
                *(config.learning_rate, for_batch),
                *(config.learning_rate * config.batch_size / for_batch, config.batch_size),
            )
