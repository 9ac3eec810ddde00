"""Calibrates probabilities on held-out images, and reports their calibration error.

One temperature (Guo et al., arXiv:1706.04599) is not enough for DeiT. It is trained with label smoothing, which leaves
a floor under every class: even certain predictions do not reach 1, while others are overconfident (arXiv:1906.02629).
So two numbers are fitted by maximum likelihood, and every probability p becomes proportional to

    (p * p / (p + floor)) ** (1 / temperature)

With a floor of 0 that is the temperature alone. It increases with p, so no two classes change places: an
order-preserving map (arXiv:2003.06820). It is applied after both heads are averaged, because a temperature on each
head's logits can change which class wins, and the mean of calibrated predictions is not calibrated (arXiv:2007.08792).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

BINS = 15
"""Bins of equal width, as in arXiv:1706.04599."""

SMALLEST = 1e-30
"""Lower limit of a probability, so that its logarithm is finite."""

SMALLEST_TEMPERATURE, LARGEST_TEMPERATURE = 0.2, 10.0
"""Limits of the search. Beyond them nothing is left of the model's doubts, or of its knowledge."""

LARGEST_FLOOR = 0.5
"""Far above what label smoothing leaves; bounds the search."""

Probabilities = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.int64]


def calibrated(probabilities: Tensor, temperature: float | Tensor, floor: float | Tensor) -> Tensor:
    """The fitted probabilities, (N, classes) as given."""
    known = probabilities.clamp_min(SMALLEST)
    return ((2 * known.log() - (known + floor).log()) / temperature).softmax(dim=-1)


def fit(probabilities: Probabilities, labels: Labels) -> tuple[float, float] | None:
    """The temperature and the floor under which the labels are most likely; None if that temperature is at a limit.

    So it is if all answers are right, from which nothing can be learned about doubts, or no more than by chance.

    Args:
        probabilities: (N, classes), as the model gives them.
    """
    given, truth = torch.from_numpy(np.asarray(probabilities, np.float64)), torch.from_numpy(labels)

    def loss(temperature: Tensor, floor: Tensor) -> Tensor:
        fitted = calibrated(given, temperature, floor)
        return torch.nn.functional.nll_loss(fitted.clamp_min(SMALLEST).log(), truth)

    smallest, largest = math.log(SMALLEST_TEMPERATURE), math.log(LARGEST_TEMPERATURE)

    def temperature_of(parameter: Tensor) -> Tensor:
        return (smallest + (largest - smallest) * parameter.sigmoid()).exp()

    # First the temperature alone, which has one minimum, on a grid: from there both descend.
    without, grid = torch.tensor(0.0, dtype=torch.float64), torch.linspace(-6, 6, 61, dtype=torch.float64)
    start = min(grid, key=lambda each: loss(temperature_of(each), without).item())
    parameters = torch.stack([start, torch.tensor(0.1 / given.shape[1] / LARGEST_FLOOR).double().logit()])
    parameters.requires_grad_()
    optimizer = torch.optim.LBFGS([parameters], max_iter=100, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimizer.zero_grad()
        result = loss(temperature_of(parameters[0]), LARGEST_FLOOR * parameters[1].sigmoid())
        result.backward()  # type: ignore[no-untyped-call]
        return result

    optimizer.step(step)  # type: ignore[no-untyped-call]
    if abs(parameters[0].item()) > grid[-2]:
        return None
    return temperature_of(parameters[0]).item(), LARGEST_FLOOR * parameters[1].sigmoid().item()


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Answers of similar probability: how many, their mean probability, and the share that is right."""

    images: int
    probability: float
    right: float


def reliability(probabilities: Probabilities, labels: Labels) -> list[Bin]:
    """The bins that hold an answer, the least probable first."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    places = np.minimum((confidence * BINS).astype(int), BINS - 1)
    return [
        Bin(images=int(inside.sum()), probability=float(confidence[inside].mean()), right=float(right[inside].mean()))
        for place in range(BINS)
        if (inside := places == place).any()
    ]


def calibration_error(bins: list[Bin]) -> float:
    """Expected calibration error: mean distance between probability and share of right answers, in 0..1."""
    return sum(each.images * abs(each.probability - each.right) for each in bins) / sum(each.images for each in bins)
