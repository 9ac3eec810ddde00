"""How far two heads are apart."""

import numpy as np
import pytest

from serving.gateway.classification import jensen_shannon_divergence


def test_equal_heads_are_0_apart_and_disjoint_ones_1():
    uneven = np.array([0.7, 0.2, 0.1, 0], np.float32)
    assert jensen_shannon_divergence(uneven, uneven) == 0
    assert jensen_shannon_divergence([1, 0, 0], [0, 0.5, 0.5]) == 1


def test_it_is_the_same_in_both_directions_and_as_worked_out_by_hand():
    # mixture (3/4, 1/4): half of [log2(1/(3/4))] + half of [1/2 log2((1/2)/(3/4)) + 1/2 log2((1/2)/(1/4))]
    by_hand = (np.log2(4 / 3) + (np.log2(2 / 3) + np.log2(2)) / 2) / 2
    assert jensen_shannon_divergence([1, 0], [0.5, 0.5]) == pytest.approx(by_hand)
    assert jensen_shannon_divergence([0.5, 0.5], [1, 0]) == pytest.approx(by_hand)
