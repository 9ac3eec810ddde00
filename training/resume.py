"""The folder of a run, and the state from which a killed or stopped run continues.

All randomness is derived from the seed and the position in the run (training.seeds), so generator states are not saved:
weights and position are enough to reproduce the uninterrupted run.
"""

import json
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from deit.durable import write_file
from deit.errors import TrainingError
from training.checkpoint import read_pytorch, write_pytorch
from training.config import TrainConfig
from training.processes import Processes

logger = logging.getLogger(__name__)

RESUME_FILE, CONFIG_FILE, PROVENANCE_FILE = "resume.pt", "config.json", "provenance.json"

MAY_CHANGE = frozenset({"data", "max_corrupt_share", "preset"})
"""Settings that a resumed run may change; the data are identified by their fingerprint, not by their path."""


@dataclass
class ResumeState:
    """How far a run has come.

    Attributes:
        epochs_done: finished epochs.
        steps_done: steps done in the epoch after them; 0 unless the run was asked to stop within it.
        loss_sum, skipped_steps, corrupt: of those steps: sum of the losses, steps without an update, and the indices of
            images that cannot be decoded.
        answers: the teacher's answers of those steps, as training.teacher_cache collected them.
        answers_key: of the cache that collected them; another one cannot use them.
        weights: state dictionaries by what they belong to: model, optimizer, scaler, ema. None before the first save.
    """

    epochs_done: int = 0
    steps_done: int = 0
    loss_sum: float = 0.0
    skipped_steps: int = 0
    corrupt: list[int] = field(default_factory=list)
    answers: Tensor | None = None
    answers_key: dict[str, Any] | None = None
    weights: dict[str, dict[str, Any]] | None = None
    metrics: list[dict[str, Any]] = field(default_factory=list)

    def save(self, config: TrainConfig) -> None:
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        write_pytorch(config.folder / RESUME_FILE, {"state": values})


def prepare_run_folder(config: TrainConfig, processes: Processes, origin: dict[str, Any]) -> ResumeState:
    """Make the run's folder, or read its state if `--resume` was given.

    For a resumed run, data or teacher may have moved, and it may allow more corrupt images or run for more epochs.
    provenance.json notes what changed, and config.json holds the current settings.

    Args:
        origin: what provenance.json keeps about a new run.

    Raises:
        TrainingError: the folder exists and --resume was not given, or --resume was given with settings, data or a
            teacher that lead to other weights.
    """
    if not config.resume:
        if config.folder.exists():
            raise TrainingError(f"{config.folder} exists: give --resume to continue it, or another --name")
        processes.wait()  # until every process has looked
        if processes.is_first:
            _write_json(config.folder / PROVENANCE_FILE, origin)
            _write_json(config.folder / CONFIG_FILE, config.settings)
        return ResumeState()
    try:
        settings, begun = (json.loads((config.folder / name).read_text()) for name in (CONFIG_FILE, PROVENANCE_FILE))
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"--resume: {config.folder} is not a run ({error}); leave --resume out, and start one"
        ) from error
    path = config.folder / RESUME_FILE
    state = ResumeState()  # for a run that was killed in its first epoch
    if path.is_file():
        content = read_pytorch(path)
        state = ResumeState(**content["state"])
    _refuse_other_data(config, begun, origin)
    changed = _changes(config, settings, same_teacher=begun.get("teacher") == origin["teacher"])
    processes.wait()  # until every process has read
    if changed and processes.is_first:
        note = {"after_epoch": state.epochs_done, "changed": changed}
        _write_json(config.folder / PROVENANCE_FILE, {**begun, "resumed": [*begun.get("resumed", []), note]})
        _write_json(config.folder / CONFIG_FILE, config.settings)
    return state


def _refuse_other_data(config: TrainConfig, begun: dict[str, Any], origin: dict[str, Any]) -> None:
    then, now = begun["data"], origin["data"]
    for split in {**now, **then}:  # one may have come, or gone
        if then.get(split) != now.get(split):
            raise TrainingError(
                f"--resume: the {split} images of {config.data} are not those that {config.folder} was started with: "
                f"{_counts(then.get(split))} then, {_counts(now.get(split))} now, by the names and classes of all "
                "files. Restore them, or start a new run with another --name"
            )
    if "teacher" in begun and begun["teacher"] != origin["teacher"]:
        raise TrainingError(
            f"--resume: the weights of --teacher {config.teacher} are not those that {config.folder} was started with: "
            "give the same teacher, or start a new run with another --name"
        )


def _counts(split: dict[str, Any] | None) -> str:
    return "no such split" if split is None else f"{split['images']} images of {split['classes']} classes"


def _changes(config: TrainConfig, settings: dict[str, Any], *, same_teacher: bool) -> dict[str, list[Any]]:
    """The settings that changed, as [then, now] by name. Raises TrainingError if one of them must not change."""
    # a run of an earlier version lacks newer options, and behaved as their defaults do
    defaults = {field.name: field.default for field in fields(TrainConfig) if field.default is not MISSING}
    defaults["teacher_cache_logits"] = None  # as in the settings of a run without a cache
    before = {name: settings.get(name, defaults.get(name)) for name in config.settings}
    changed = {name: [before[name], value] for name, value in config.settings.items() if before[name] != value}
    for name, (then, now) in changed.items():
        logger.info("%s was %r when the run started, and is %r now", name, then, now)
        if name in MAY_CHANGE or (name == "teacher" and same_teacher):
            continue
        if name == "epochs" and now > then:
            continue
        raise TrainingError(
            f"--resume: {config.folder} was started with {name} {then!r}, not {now!r}: repeat its settings "
            "(config.json lists them; --epochs may be raised), or start a new run with another --name"
        )
    return changed


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_file(path, json.dumps(content, indent=2) + "\n")


@contextmanager
def stop_request() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM or Ctrl-C was received: the run then saves its position. A second Ctrl-C ends it at once.

    Spot machines send SIGTERM before they are taken away.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield asked.is_set
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    # a shell has those that it starts in the background ignore Ctrl-C
    before = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}

    def ask(number: int, frame: object) -> None:
        asked.set()
        if number == signal.SIGINT:
            logger.info("stopping after this step; Ctrl-C again ends the run at once, and loses what was not saved")
            signal.signal(signal.SIGINT, before[signal.SIGINT])

    for number in before:
        signal.signal(number, ask)
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
