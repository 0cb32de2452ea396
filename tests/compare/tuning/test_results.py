"""What a search shows, against numbers worked out by hand and by simulation."""

import numpy as np
import pytest

from transformer_dropout.compare.tuning.results import Tried, curve, expected_best, local_line
from transformer_dropout.compare.tuning.space import Range


def test_the_expected_best_is_that_of_a_simulation():
    values = [3.0, 1.0, 2.0, 5.0]
    assert expected_best(values, 1) == pytest.approx(np.mean(values))
    draws = np.random.default_rng(0).choice(values, size=(200_000, 3)).min(axis=1)
    assert expected_best(values, 3) == pytest.approx(draws.mean(), abs=0.01)
    assert expected_best(values, 1000) == pytest.approx(1.0, abs=1e-6)


def test_a_local_line_is_exact_on_a_line_and_stands_still_on_one_place():
    x, grid = np.linspace(0, 1, 9), np.linspace(0, 1, 5)
    assert local_line(x, 2 * x + 1, grid) == pytest.approx(2 * grid + 1, abs=1e-6)
    assert local_line(np.full(4, 0.5), np.array([1.0, 2.0, 3.0, 4.0]), grid) == pytest.approx([2.5] * 5)


@pytest.mark.parametrize("log", [False, True])
def test_a_curve_finds_the_valley_and_its_band_holds_it(log):
    search = Range(low=0.01, high=1.0, log=log)
    shares = np.random.default_rng(1).uniform(size=60)
    noise = np.random.default_rng(2).normal(scale=0.05, size=60)
    tried = [
        Tried(number=n, values={"p": search.at(share)}, value=(share - 0.6) ** 2 + noise[n])
        for n, share in enumerate(shares)
    ]
    line = curve(tried, "p", search)
    assert abs(np.argmin(line.mean) / 59 - 0.6) < 0.15
    assert np.all(line.low <= line.high)
    truth = (np.linspace(0, 1, 60) - 0.6) ** 2
    assert np.mean((line.low <= truth + 0.03) & (truth - 0.03 <= line.high)) > 0.8
