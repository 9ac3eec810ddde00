"""The folder of a run, and the state from which a killed or stopped run continues.

Everything random follows from the seed and the place in the run (training.seeds), so no generator's state is kept: the
weights and where the run stands are enough to repeat the uninterrupted run.
"""

import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from deit.durable import write_file
from deit.errors import TrainingError
from training.checkpoint import read_pytorch, write_pytorch
from training.config import TrainConfig
from training.processes import Processes

RESUME_FILE = "resume.pt"


@dataclass
class ResumeState:
    """How far a run has come.

    Attributes:
        epochs_done: finished epochs.
        steps_done: steps done in the epoch after them; 0 unless the run was asked to stop within it.
        loss_sum, skipped_steps, corrupt: of those steps: sum of the losses, steps without an update, and the indices of
            images that cannot be decoded.
        weights: state dictionaries by what they belong to: model, optimizer, scaler, ema. None before the first save.
        metrics: the lines of metrics.jsonl.
    """

    epochs_done: int = 0
    steps_done: int = 0
    loss_sum: float = 0.0
    skipped_steps: int = 0
    corrupt: list[int] = field(default_factory=list)
    weights: dict[str, dict[str, Any]] | None = None
    metrics: list[dict[str, Any]] = field(default_factory=list)

    def save(self, config: TrainConfig) -> None:
        """Replace the run's resume file."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        write_pytorch(config.folder / RESUME_FILE, {"settings": config.settings, "state": values})


def prepare_run_folder(config: TrainConfig, processes: Processes, origin: dict[str, Any]) -> ResumeState:
    """Make the run's folder, or read where it stands when `--resume` was given.

    Args:
        origin: what provenance.json keeps of a new run.

    Raises:
        TrainingError: the folder exists and --resume was not given, or --resume was given with other settings.
    """
    path = config.folder / RESUME_FILE
    if not config.resume:
        if config.folder.exists():
            raise TrainingError(f"{config.folder} exists: give --resume to go on with it, or another --name")
        processes.wait()  # until every process has looked
        if processes.is_first:
            write_file(config.folder / "provenance.json", json.dumps(origin, indent=2) + "\n")
            write_file(config.folder / "config.json", json.dumps(config.settings, indent=2) + "\n")
        return ResumeState()
    if not path.is_file():
        if (config.folder / "config.json").is_file():  # it was killed in its first epoch
            return ResumeState()
        raise TrainingError(f"--resume: {config.folder} is not a run; leave --resume out to start one")
    content = read_pytorch(path)
    for name, value in config.settings.items():
        if content["settings"].get(name) != value:
            raise TrainingError(
                f"--resume: {config.folder} was started with {name} {content['settings'].get(name)!r}, not {value!r}: "
                "repeat its settings (config.json lists them), or start a new run with another --name"
            )
    return ResumeState(**content["state"])


@contextmanager
def stop_request() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM has come: spot machines send it before they vanish, and the run then saves where it stands."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield asked.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
