from pathlib import Path

import pytest
import torch

from training.config import TrainConfig
from training.schedule import learning_rate_schedule

STEPS = 1251  # of ImageNet in batches of 1024


def rates(places: list[tuple[int, int]], **changes: object) -> list[float]:
    config = TrainConfig(**{"data": Path("data"), "name": "run", **changes})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    set_learning_rate = learning_rate_schedule(optimizer, config, STEPS)
    found = []
    for epoch, step in places:
        set_learning_rate(epoch, step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_the_official_schedule_is_deits_one_epoch_late() -> None:
    golden = {
        **{0: 1e-6, 1: 1e-6, 2: 2.008e-4, 3: 4.006e-4, 4: 6.004e-4, 5: 8.002e-4, 6: 9.993e-4},
        **{10: 9.978e-4, 100: 7.570e-4, 200: 2.620e-4, 299: 1.011e-5},
    }
    found = rates([(epoch, 700) for epoch in golden], schedule="official")
    assert found == pytest.approx(list(golden.values()), rel=3e-4)  # the golden values have four digits


def test_the_rate_moves_with_every_step_and_ends_at_the_floor() -> None:
    first, second, peak, last = rates([(0, 0), (0, 1), (5, 0), (299, STEPS - 1)])
    assert (first, peak) == pytest.approx((1e-6, 1e-3), rel=1e-3)
    assert second == pytest.approx(1e-6 + (1e-3 - 1e-6) / (5 * STEPS))
    assert last == pytest.approx(1e-5, rel=1e-6)


def test_fine_tuning_at_384_is_constant_after_the_warm_up() -> None:
    found = rates(
        [(0, 0), (5, 0), (17, 3), (29, STEPS - 1)],
        **{"epochs": 30, "learning_rate": 5e-6, "min_learning_rate": 5e-6},
    )
    assert found == pytest.approx([1e-6, 5e-6, 5e-6, 5e-6])


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"learning_rate": 7.5e-6}, "--min-learning-rate 1e-05 is above --learning-rate 7.5e-06"),
        ({"learning_rate": 5e-7, "min_learning_rate": 0}, "the warm-up would fall"),
    ],
)
def test_a_schedule_that_goes_the_wrong_way_is_refused(changes: dict[str, float], finding: str) -> None:
    with pytest.raises(ValueError, match=finding):
        rates([], **changes)
