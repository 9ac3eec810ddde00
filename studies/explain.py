"""What an epoch reads of a data set, given repeated augmentation, batches and processes.

    python -m studies.explain --preset small-32 --data DATA --name run

takes the options of `deit train`, trains nothing, and prints which images the first epoch reads.
"""

import os

import typer

from deit.log import configure_logging
from deit.options import command_of
from studies import run_study
from training.config import TrainConfig
from training.data import labels_of
from training.processes import Processes
from training.sampler import EpochSampler, share_out
from training.splits import open_splits

OFFICIAL_ROUND = 256
"""DeiT's sampler rounds an epoch down to a multiple of this."""

SHOWN = 12


def explain_epoch(config: TrainConfig, *, processes: int) -> str:
    """The first epoch of a run, counted from the very samplers that the run would read with.

    Raises:
        DataError, TrainingError: the data cannot be read, or a batch not be shared.
    """
    images = open_splits(config).train
    labels = labels_of(images) if config.balanced_sampling else None
    seen: set[int] = set()
    draws, first_batches = 0, []
    for rank in range(processes):
        shares = share_out(config, Processes(rank, processes))
        sampler = EpochSampler(
            len(images),
            shares,
            seed=config.seed,
            epoch=0,
            repeats=config.repeated_augmentation,
            first_step=0,
            labels=labels,
        )
        for number, read in enumerate(sampler):
            seen.update(draw.image for draw in read)
            draws += len(read)
            if number == 0:
                first_batches.append([draw.image for draw in read])

    batch, repeats = config.batch_size, config.repeated_augmentation
    steps = draws // batch
    never = (1 - len(seen) / len(images)) ** config.epochs
    official = len(images) // OFFICIAL_ROUND * OFFICIAL_ROUND // processes
    lines = [
        f"{config.data}: {len(images):,} images to train on, {repeats} draws of an image, batches of {batch:,}",
        f"an epoch: {steps:,} steps, {draws:,} draws of {len(seen):,} distinct images ({len(seen) / len(images):.1%}); "
        f"{len(images) - draws:,} draws that fill no batch are dropped",
        f"{config.epochs} epochs: {steps * config.epochs:,} steps; an image is drawn "
        f"{draws * config.epochs / len(images):.1f} times on average, {never:.2%} of them never",
        f"a step: {batch:,} draws = {batch // shares.parts:,} on a device x {processes} processes "
        f"x {shares.accumulation} in turn",
        f"DeiT's sampler would give each of {processes} processes {official:,} draws: it rounds the {len(images):,} "
        f"down to a multiple of {OFFICIAL_ROUND}" + ("" if official else ", which leaves an empty epoch"),
    ]
    if repeats > 1:
        parts = min(repeats, shares.parts)
        lines.append(
            f"the {repeats} draws of an image follow each other, each with its own augmentation, and "
            + ("go to one device batch" if parts == 1 else f"go to {parts} device batches of the same step")
        )
    lines += [
        f"process {rank} starts with the images {', '.join(map(str, first[:SHOWN]))}, …"
        for rank, first in enumerate(first_batches)
    ]
    return "\n".join(lines)


app = typer.Typer()


@app.command()
@command_of(TrainConfig)
def explain(config: TrainConfig) -> None:
    """Print which images an epoch of `deit train` with these options reads; WORLD_SIZE is the number of processes."""
    configure_logging("text")
    typer.echo(explain_epoch(config, processes=int(os.environ.get("WORLD_SIZE", "1"))))


if __name__ == "__main__":
    run_study(app)
