import pytest

from benchmark.machine_limit import machine_limit


def test_every_precision_gets_a_rate_of_this_machine() -> None:
    rates = machine_limit(1, shapes=((128, 64, 256),), call_s=0.01)
    assert [rate.precision for rate in rates] == ["fp32", "fp32", "bf16", "int8"]  # by two engines
    for rate in rates:
        # a core that multiplies at all does a tenth of 10^9 operations a second; none does 10^14
        assert 0.1 < rate.gops_median <= rate.gops_best < 1e5


def test_a_rate_counts_two_operations_for_each_product(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr("benchmark.machine_limit.time.perf_counter", lambda: float(next(clock)))
    (rate,) = machine_limit(1, precisions=("bf16",), shapes=((100, 1000, 50),), call_s=0.5)
    # The clock ticks a second at each look: before the call, at the first question, after the call.
    assert rate.gops_median == pytest.approx(2 * 100 * 1000 * 50 / 1e9 / 2)
