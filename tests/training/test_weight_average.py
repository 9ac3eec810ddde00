import pytest
from torch import nn

from training.weight_average import WeightAverage


def average(decay: float) -> WeightAverage:
    return WeightAverage(nn.Linear(1, 1), decay=decay)


def test_the_decay_is_the_one_asked_for_where_the_run_is_long_enough() -> None:
    steps = 375_300  # of DeiT's 300 epochs
    assert [average(decay).get_decay(steps) for decay in (0.9999, 0.99996)] == [0.9999, 0.99996]
    assert average(0.99996).warmed_at() == 224_991


@pytest.mark.parametrize("steps", [1, 90, 6000])
def test_before_that_it_spans_the_last_ninth_of_the_steps(steps: int) -> None:
    assert 1 / (1 - average(0.99996).get_decay(steps)) == pytest.approx(steps / 9 + 1)


def test_the_average_follows_the_weights() -> None:
    model = nn.Linear(1, 1, bias=False)
    kept = WeightAverage(model, decay=0.5)
    expected = model.weight.item()
    for step in range(1, 30):
        nn.init.constant_(model.weight, step)
        kept.update(model, step=step)
        decay = min(0.5, step / (step + 9))
        expected = decay * expected + (1 - decay) * step
    assert kept.module.weight.item() == pytest.approx(expected)
