"""Our data loader and training step next to timm's own, or next to a step without the teacher, on this machine."""

import typer

from benchmark.environment import this_environment
from benchmark.outcome import keep
from benchmark.training_speed import TrainingSpeedConfig, measure_training
from deit.options import command_of
from studies import run_study

app = typer.Typer()


@app.command()
@command_of(TrainingSpeedConfig)
def training_speed(config: TrainingSpeedConfig) -> None:
    """Images per second of the data loader and of the training step, next to timm's own on this machine.

    Both sides get the same JPEG folders, transforms, workers, model, teacher and precision, in turns. With --compare
    teacher-cache: of our step, next to one that reads the teacher's answers from --teacher-cache.
    """
    environment = this_environment()
    results = measure_training(config)
    keep(results, environment, config.results, "python", "-m", "studies.training_speed")


if __name__ == "__main__":
    run_study(app)
