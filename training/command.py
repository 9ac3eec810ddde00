"""`deit train`."""

import typer

from deit.log import configure_logging
from deit.options import command_of
from training.config import TrainConfig

app = typer.Typer(add_completion=False)


@app.command()
@command_of(TrainConfig, "DEIT_TRAIN")
def train(config: TrainConfig) -> None:
    """Train a teacher, or distil a DeiT student from one.

    Writes to RUNS/NAME: checkpoint/ (for `deit export` and timm's local-dir),
    metrics.jsonl (one line per epoch), config.json (the settings), resume.pt
    (for --resume), tensorboard/ and, with --ema-decay, checkpoint-ema/.

    A flag overrides the variable DEIT_TRAIN_<OPTION>, which overrides --preset.
    """
    configure_logging("text")
    from training.loop import train  # after parsing, so that --help and wrong usage need no torch

    train(config)
