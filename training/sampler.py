"""Which images an epoch reads, in which order, and which process reads which.

A step's batch is cut into parts, one for each device batch: as many as processes times accumulation. A part's images,
their augmentation and their mixing do not depend on the process that computes it, so two processes compute exactly what
one process computes in two accumulation steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Sampler

from deit.errors import TrainingError
from training.config import TrainConfig
from training.processes import Processes
from training.seeds import Purpose, derived_seed


class Draw(NamedTuple):
    """One image to read."""

    image: int
    """Its index in the data set."""
    epoch: int
    place: int
    """Epoch and position of the draw: both decide its augmentation."""


def epoch_order(images: int, *, seed: int, epoch: int, repeats: int, labels: Tensor | None = None) -> Tensor:
    """Indices of the images of one epoch, (images,).

    With `repeats` above 1 it is DeiT's repeated augmentation: copies of an image follow each other, and the epoch ends
    after as many draws as there are images, so it sees the first `images / repeats` of a shuffle. DeiT's sampler seeds
    the shuffle by the epoch alone, rounds the epoch down to a multiple of 256 (nothing is left of fewer images) and
    works in distributed runs only; here the run's seed counts, nothing is rounded, and one process will do.
    https://github.com/facebookresearch/deit/blob/main/samplers.py

    Args:
        labels: class indices (images,); if given, images of each class are drawn equally often, with replacement.
    """
    generator = torch.Generator().manual_seed(derived_seed(seed, epoch, Purpose.ORDER))
    if labels is not None:
        chances = 1 / labels.bincount().clamp_min(1).double()[labels]
        places = torch.rand(images, dtype=torch.float64, generator=generator) * chances.sum()
        drawn = torch.searchsorted(chances.cumsum(0), places).clamp_max(images - 1)
        return drawn.repeat_interleave(repeats)[:images]
    return torch.randperm(images, generator=generator).repeat_interleave(repeats)[:images]


@dataclass(frozen=True, kw_only=True)
class Shares:
    """How a step's batch is divided among processes.

    Attributes:
        batch_size: images of a step, over all processes.
        processes, rank: how many, and which one this is.
        accumulation: device batches that each process computes for one step, one after the other.
    """

    batch_size: int
    processes: int
    rank: int
    accumulation: int

    def part(self, turn: int) -> int:
        """Number of the part that this process computes in the given turn of a step."""
        return turn * self.processes + self.rank

    @property
    def parts(self) -> int:
        return self.processes * self.accumulation


def share_out(config: TrainConfig, processes: Processes) -> Shares:
    """How the processes share a step's batch. Raises TrainingError when it cannot be shared equally."""
    device_batch = config.device_batch_size or config.batch_size // processes.count
    accumulation, rest = divmod(config.batch_size, device_batch * processes.count)
    if rest or not accumulation:
        raise TrainingError(
            f"--batch-size {config.batch_size} cannot be shared by {processes.count} processes with {device_batch} "
            "images at a time: choose a multiple, or another --device-batch-size"
        )
    if config.mixes and device_batch % 2:
        raise TrainingError(
            f"each of {processes.count} processes would take {device_batch} images, but mixup pairs them: choose an "
            "even --device-batch-size"
        )
    return Shares(
        batch_size=config.batch_size, processes=processes.count, rank=processes.rank, accumulation=accumulation
    )


class EpochSampler(Sampler[list[Draw]]):
    """The device batches that this process reads in one epoch, from `first_step` on; the last, smaller one is dropped.

    Copies of an image go to different parts as far as there are parts, as DeiT's sampler sends them to different GPUs.
    """

    def __init__(
        self,
        images: int,
        shares: Shares,
        *,
        seed: int,
        epoch: int,
        repeats: int,
        first_step: int,
        labels: Tensor | None = None,
    ) -> None:
        self._order = epoch_order(images, seed=seed, epoch=epoch, repeats=repeats, labels=labels)
        self._epoch, self._shares = epoch, shares
        self._steps = range(first_step, images // shares.batch_size)

    def __len__(self) -> int:
        return len(self._steps) * self._shares.accumulation

    def __iter__(self) -> Iterator[list[Draw]]:
        shares = self._shares
        for step in self._steps:
            start, end = step * shares.batch_size, (step + 1) * shares.batch_size
            for turn in range(shares.accumulation):
                places = range(start + shares.part(turn), end, shares.parts)
                images = self._order[places.start : places.stop : places.step].tolist()
                yield [Draw(image, self._epoch, place) for image, place in zip(images, places, strict=True)]
