"""Seeds that depend only on the run's seed and the position in the run.

An epoch's order and crops, an image's augmentation and a device batch's mixing each have their own seed, so the numbers
are the same whichever process draws them, and however often the run was interrupted.
"""

import random
from enum import IntEnum

import numpy as np
import torch


class Purpose(IntEnum):
    """Keeps the seeds of different draws apart."""

    ORDER = 1
    IMAGE = 2
    BATCH = 3
    CROPS = 4


def derived_seed(seed: int, epoch: int, purpose: Purpose, *place: int) -> int:
    """A 32-bit seed, a different one for every argument."""
    return int(np.random.SeedSequence((seed, epoch, int(purpose), *place)).generate_state(1)[0])


def seed_everything(seed: int) -> None:
    """Seed Python's (RandAugment, erasing), numpy's (mixup, RandAugment) and torch's generators, on every device."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def seed_cpu(seed: int) -> None:
    """Seed what augments an image, which is cheap enough to do for each: `torch.manual_seed` walks all devices."""
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
