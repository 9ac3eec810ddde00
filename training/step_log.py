"""Losses and skipped steps of an epoch, and whether a stop was requested."""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor

from deit.errors import TrainingError
from training.config import TrainConfig
from training.events import Events
from training.optimizer import read_later
from training.resume import ResumeState

logger = logging.getLogger(__name__)

SKIPPED_STEPS_LIMIT = 20
"""Steps in a row without a finite loss or gradient. Fewer are skipped: fp16 meets some while its scale settles."""

COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


Note = Callable[[int, float, Tensor], bool]


class StepLog:
    """Notes each step in the run's state, its curves and a progress bar.

    A GPU computes a step while the host queues the next, so there the numbers of a step are read one step late.
    """

    def __init__(
        self, config: TrainConfig, events: Events, *, steps_per_epoch: int, device: torch.device, is_shown: bool
    ) -> None:
        self._config = config
        self._events = events
        self._steps_per_epoch = steps_per_epoch
        self._steps_late = 1 if device.type == "cuda" else 0
        self._is_shown = is_shown
        self._unread: deque[tuple[int, float, Callable[[], list[float]]]] = deque()
        self._skipped_in_a_row = 0

    @contextmanager
    def epoch(self, epoch: int, state: ResumeState, *, saved_epoch: int) -> Iterator[Note]:
        """A function that notes a step of this epoch: its number, its learning rate, and its loss, gradient norm and
        share of the processes that were asked to stop, (3,). It returns whether the run should stop.
        """
        with Progress(*COLUMNS, transient=True, disable=not self._is_shown) as progress:
            bar = progress.add_task("", total=self._steps_per_epoch, completed=state.steps_done)

            def note(step: int, rate: float, numbers: Tensor) -> bool:
                self._unread.append((step, rate, read_later(numbers)))
                stop, is_last = False, step + 1 == self._steps_per_epoch
                while len(self._unread) > (0 if stop or is_last else self._steps_late):
                    stop = self._read(epoch, state, progress, bar, saved_epoch) or stop
                return stop

            yield note

    def _read(self, epoch: int, state: ResumeState, progress: Progress, bar: TaskID, saved_epoch: int) -> bool:
        step, rate, read = self._unread.popleft()
        loss, norm, stop_share = read()
        if math.isfinite(loss) and math.isfinite(norm):
            self._skipped_in_a_row = 0
            state.loss_sum += loss
        else:
            self._skipped_in_a_row += 1
            state.skipped_steps += 1
            logger.warning("step %d of epoch %d is skipped: loss %g, gradient norm %g", step, epoch + 1, loss, norm)
        if self._skipped_in_a_row == SKIPPED_STEPS_LIMIT:
            raise TrainingError(
                f"the loss or its gradient was not finite for {SKIPPED_STEPS_LIMIT} steps in a row, until step {step} "
                f"of epoch {epoch + 1}. {self._config.folder} keeps the state after epoch {saved_epoch}: start again "
                "from its checkpoint with --initial-checkpoint and a lower --learning-rate"
            )
        self._events.step(
            epoch * self._steps_per_epoch + step, {"loss": loss, "gradient_norm": norm, "learning_rate": rate}
        )
        images_per_s = (progress.tasks[bar].speed or 0) * self._config.batch_size
        progress.update(bar, advance=1, description=f"epoch {epoch + 1} loss {loss:.3f}, {images_per_s:.0f} images/s")
        return stop_share > 0
