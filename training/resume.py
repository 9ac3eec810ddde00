"""The folder of a run, and the state from which a killed run goes on."""

import json
from dataclasses import dataclass
from typing import Any

from deit.durable import write_file
from deit.errors import TrainingError
from training.checkpoint import read_pytorch, write_pytorch
from training.config import TrainConfig

RESUME_FILE = "resume.pt"


@dataclass
class ResumeState:
    """What a run knows after its last finished epoch."""

    epochs_done: int
    weights: dict[str, Any] | None
    optimizer: dict[str, Any]
    metrics: list[dict[str, Any]]

    def save(
        self, config: TrainConfig, *, epochs_done: int, weights: dict[str, Any], optimizer: dict[str, Any]
    ) -> None:
        """Replace the run's resume file."""
        self.epochs_done, self.weights, self.optimizer = epochs_done, weights, optimizer
        write_pytorch(
            config.folder / RESUME_FILE,
            {
                "settings": config.settings,
                "epochs_done": epochs_done,
                "weights": weights,
                "optimizer": optimizer,
                "metrics": self.metrics,
            },
        )


def prepare_run_folder(config: TrainConfig) -> ResumeState:
    """Make the run's folder, or read where it stands when `--resume` was given.

    Raises:
        TrainingError: the folder exists and --resume was not given, or --resume was given with other settings.
    """
    path = config.folder / RESUME_FILE
    if not config.resume:
        if config.folder.exists():
            raise TrainingError(f"{config.folder} exists: give --resume to go on with it, or another --name")
        write_file(config.folder / "config.json", json.dumps(config.settings, indent=2) + "\n")
        return ResumeState(epochs_done=0, weights=None, optimizer={}, metrics=[])
    if not path.is_file():
        if (config.folder / "config.json").is_file():  # it was killed in its first epoch
            return ResumeState(epochs_done=0, weights=None, optimizer={}, metrics=[])
        raise TrainingError(f"--resume: {config.folder} is no run; leave --resume out to start it")
    content = read_pytorch(path)
    for name, value in config.settings.items():
        if content["settings"].get(name) != value:
            raise TrainingError(
                f"--resume: {config.folder} was started with {name} {content['settings'].get(name)!r}, not {value!r}: "
                "repeat its settings (config.json lists them), or start a new run with another --name"
            )
    return ResumeState(
        epochs_done=content["epochs_done"],
        weights=content["weights"],
        optimizer=content["optimizer"],
        metrics=content["metrics"],
    )
