"""`deit train`."""

import typer

from deit.log import configure_logging
from deit.options import command_of
from training.config import TrainConfig

app = typer.Typer()


@app.command()
@command_of(TrainConfig, "DEIT_TRAIN")
def train(config: TrainConfig) -> None:
    """Train a teacher, or distil a DeiT student from one.

    Writes RUNS/NAME: config.json (what was asked), metrics.jsonl (one line an epoch), checkpoint/ (a folder that timm
    opens as local-dir, and that `deit export` takes), checkpoint-ema/ (with --ema-decay), tensorboard/ (event files)
    and resume.pt (for --resume).

    An option that is not given is read from DEIT_TRAIN_<OPTION>, then from --preset.
    """
    configure_logging("text")
    from training.loop import train  # after parsing, so that --help and wrong usage need no torch

    train(config)
