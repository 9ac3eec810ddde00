"""How long each part of a training step takes."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

import torch

LEARNING = ("teacher", "student", "backward", "optimiser")
"""The parts that are the model, its loss and the optimiser. The others are the cost of the loop around them."""

Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")

PARTS = ("data", "transfer", "augmentation", *LEARNING, "average", "rest")


@dataclass
class StepProfile:
    """The seconds of each part of each step; costs nothing unless enabled.

    The parts of a step are functions, which `timed` wraps; the remaining time of a step is `rest`. It waits for the
    device before and after each part: otherwise a GPU's work would be counted where the host happens to wait for it. So
    a profiled run on a GPU is somewhat slower.
    """

    device: torch.device
    enabled: bool
    steps: list[dict[str, float]] = field(default_factory=list)

    def timed(self, part: str, function: Callable[Arguments, Returned]) -> Callable[Arguments, Returned]:
        """The function, timed as `part`, one of PARTS, of the step in which it is called."""
        if not self.enabled:
            return function

        def call(*arguments: Arguments.args, **named: Arguments.kwargs) -> Returned:
            began = self._now()
            result = function(*arguments, **named)
            self.steps[-1][part] += self._now() - began
            return result

        return call

    def each(self, steps: Iterable[int]) -> Iterator[int]:
        """The numbers of an epoch's steps; what lies between two of them is a step."""
        self.steps.clear()
        for step in steps:
            if self.enabled:
                began, parts = self._now(), dict.fromkeys(PARTS, 0.0)
                self.steps.append(parts)
            yield step
            if self.enabled:
                parts["rest"] = self._now() - began - sum(parts.values())

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def means(self) -> dict[str, float]:
        """Seconds of a step, by part. The first step is left out where others follow: it warms up."""
        steps = self.steps[1:] or self.steps
        return {part: sum(step[part] for step in steps) / len(steps) for part in PARTS}

    def learning_share(self) -> float:
        """Share of a step, once its data is there, that is model, loss and optimiser."""
        means = self.means()
        return sum(means[part] for part in LEARNING) / (sum(means.values()) - means["data"])

    def text(self, batch_size: int) -> str:
        """The mean step as a table."""
        means = self.means()
        step_s = sum(means.values())
        lines = [f"  {part:14}{1000 * seconds:10.1f} ms{seconds / step_s:8.1%}" for part, seconds in means.items()]
        return "\n".join(
            [
                f"a step of {batch_size} images takes {1000 * step_s:.1f} ms, {batch_size / step_s:.1f} images/s:",
                *lines,
                f"once the data is there, {self.learning_share():.1%} of it is model, loss and optimiser",
            ]
        )
