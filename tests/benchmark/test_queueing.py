from math import exp, factorial

import numpy as np
import pytest

from benchmark.queueing import ideal_tail


def test_without_load_nobody_waits():
    assert ideal_tail(2, 0.001) == pytest.approx(1, abs=0.01)


def test_one_server_has_the_tail_of_theory():
    """M/D/1 (Erlang 1909): how long one waits, in units of work. At a load of 0.4 more than half do not wait at all."""
    load = 0.4

    def share_within(wait: float) -> float:
        return (1 - load) * sum(
            (load * (k - wait)) ** k / factorial(k) * exp(-load * (k - wait)) for k in range(int(wait) + 1)
        )

    p99 = next(wait for wait in np.arange(0, 10, 0.001) if share_within(wait) >= 0.99)
    assert ideal_tail(1, load) == pytest.approx(1 + p99, rel=0.02)  # 2,000 of the simulated requests lie beyond
