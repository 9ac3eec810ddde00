"""Event files for TensorBoard: `tensorboard --logdir runs` shows all runs in one plot."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deit.errors import TrainingError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

POINTS_PER_EPOCH = 50
"""Steps of an epoch that become points of a curve; a run of 375,300 steps would otherwise write hundreds of MB."""

CURVES = ("test_ema", "test", "val_ema", "val")


class Events:
    """Curves by step: within the epochs, and of each epoch's evaluation.

    Both methods raise TrainingError when the folder of the run is gone.
    """

    def __init__(self, writer: "SummaryWriter | None", steps_per_epoch: int) -> None:
        self._writer = writer
        self._steps_per_epoch = steps_per_epoch
        self._every = max(steps_per_epoch // POINTS_PER_EPOCH, 1)

    def step(self, step: int, values: dict[str, float]) -> None:
        """`step` counts from the start of the run."""
        if self._writer is not None and step % self._every == 0:
            _check_folder(Path(self._writer.log_dir))
            for name, value in values.items():
                self._writer.add_scalar(f"step/{name}", value, step)

    def epoch(self, record: dict[str, float]) -> None:
        """A line of metrics.jsonl, at the last step of its epoch."""
        if self._writer is None:
            return
        _check_folder(Path(self._writer.log_dir))
        for name, value in record.items():
            split = next((split for split in CURVES if name.startswith(f"{split}_")), None)
            tag = f"epoch/{name}" if split is None else f"{split}/{name.removeprefix(f'{split}_')}"
            self._writer.add_scalar(tag, value, int(record["epoch"]) * self._steps_per_epoch)
        self._writer.flush()


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise TrainingError(
            f"{folder.parent} was deleted or moved, so the run stops; move it back and use --resume, or start again"
        )


@contextmanager
def event_file(folder: Path, *, first_step: int, steps_per_epoch: int, enabled: bool) -> Iterator[Events]:
    """A new event file in the folder. Points that a killed run left there from `first_step` on are dropped by
    TensorBoard, because this run draws them again.
    """
    if not enabled:
        yield Events(None, steps_per_epoch)
        return
    try:
        from torch.utils.tensorboard import SummaryWriter  # a bare machine has torch and no tensorboard
    except ModuleNotFoundError as error:
        logger.warning("%s is not installed, so the run writes only metrics.jsonl, without event files", error.name)
        yield Events(None, steps_per_epoch)
        return
    writer = SummaryWriter(str(folder), purge_step=first_step)
    try:
        yield Events(writer, steps_per_epoch)
    finally:
        if folder.is_dir():  # else its thread fails, and prints why
            writer.close()
