"""Statistics against hand-computed values, scipy's own tests, and properties that must always hold."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from transformer_dropout.compare.statistics import (
    Estimate,
    decimals,
    difference_text,
    differences_to,
    mean_interval,
    p_text,
    sign_flip_floor,
    sign_flip_p,
)

losses = st.floats(0.5, 11.0)


def test_mean_interval_by_hand():
    # mean 3, s = 1, n = 3, t(2) at 97.5 % = 4.302653
    estimate = mean_interval([2.0, 3.0, 4.0])
    assert (estimate.n, estimate.mean) == (3, 3.0)
    assert estimate.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)


def test_one_value_has_no_interval_and_equal_values_have_one_of_no_width():
    assert mean_interval([2.5]) == Estimate(n=1, mean=2.5, low=None, high=None)
    assert mean_interval([2.5]).half_width is None
    assert mean_interval([2.5, 2.5, 2.5]) == Estimate(n=3, mean=2.5, low=2.5, high=2.5)


def alone(arm, reference):
    """Return the difference of the only arm there is."""
    return differences_to(reference, {"arm": arm}).get("arm")


def test_one_difference_is_scipys_plain_paired_test():
    rng = np.random.default_rng(0)
    arm, reference = rng.normal(2.4, 0.1, 6), rng.normal(2.5, 0.1, 6)
    expected = stats.ttest_rel(arm, reference)
    interval = expected.confidence_interval(0.95)
    found = alone(dict(enumerate(arm)), dict(enumerate(reference)))
    assert found.p == found.adjusted_p == pytest.approx(expected.pvalue)
    assert (found.estimate.low, found.estimate.high) == pytest.approx((interval.low, interval.high))
    assert found.estimate.mean == pytest.approx((arm - reference).mean())
    assert (found.df, found.arms, found.estimate.n) == (5, 1, 6)


def test_only_common_seeds_are_paired():
    found = alone({1: 2.0, 2: 2.1, 9: 7.0}, {2: 2.2, 1: 2.3, 5: 0.0})
    assert found.differences == pytest.approx((-0.3, -0.1))
    assert alone({1: 2.0}, {2: 2.0}) is None


def test_one_common_seed_has_a_difference_but_no_interval():
    found = alone({1: 2.0}, {1: 2.5})
    assert (found.estimate.mean, found.estimate.low, found.p, found.constant) == (-0.5, None, None, False)


def test_identical_arms_are_no_different_with_certainty():
    found = alone({1: 2.0, 2: 2.1}, {1: 2.0, 2: 2.1})
    assert (found.estimate.low, found.estimate.high, found.p, found.constant) == (0.0, 0.0, 1.0, False)
    assert found.adjusted_p == 1.0


@pytest.mark.parametrize("shift", [0.1, -1e-3, 3.0])
def test_the_same_difference_at_every_seed_gives_no_interval_instead_of_nan(shift):
    reference = {seed: 2.4 + 0.1 * seed for seed in range(5)}
    found = alone({seed: loss + shift for seed, loss in reference.items()}, reference)
    assert (found.estimate.low, found.p, found.adjusted_p, found.constant) == (None, None, None, True)
    assert found.estimate.mean == pytest.approx(shift)


@given(st.lists(st.lists(losses, min_size=4, max_size=4), min_size=2, max_size=6))
def test_a_difference_is_never_nan_and_its_interval_is_its_verdict(table):
    arms = {str(at): dict(enumerate(row)) for at, row in enumerate(table)}
    for found in differences_to(arms.pop("0"), arms).values():
        estimate = found.estimate
        for value in (estimate.mean, estimate.low, estimate.high, found.p, found.sign_flip_p):
            assert value is None or math.isfinite(value)
        assert found.sign_flip_floor - 1e-12 <= found.sign_flip_p <= 1.0
        if estimate.low is not None and not 0.0499999 < found.adjusted_p < 0.0500001:
            assert estimate.without_zero == (found.adjusted_p < 0.05)


@given(st.floats(-3.0, 3.0), st.floats(1e-12, 4.0), st.booleans())
def test_what_is_printed_leaves_out_zero_exactly_where_the_interval_does(mean, half, flip):
    estimate = Estimate(n=3, mean=mean, low=mean - half, high=mean + half)
    low, high = map(float, difference_text(estimate, flip=flip).split("[")[1].rstrip("]").split(", "))
    assert (low > 0 or high < 0) == estimate.without_zero


def test_an_estimate_in_another_unit():
    estimate = Estimate(n=3, mean=-0.02, low=-0.03, high=0.01)
    assert estimate.times(100) == Estimate(n=3, mean=-2.0, low=-3.0, high=1.0)
    assert estimate.times(-1) == Estimate(n=3, mean=0.02, low=-0.01, high=0.03)
    assert estimate.times(-1).without_zero is False


def test_arms_are_tested_together_where_they_have_a_test():
    reference = {1: 2.0, 2: 2.2, 3: 2.1}
    arms = {
        "a": {1: 1.9, 2: 2.05, 3: 1.98},
        "b": {1: 2.3, 2: 2.1, 3: 2.2},
        "shifted": {seed: loss + 1.0 for seed, loss in reference.items()},
        "one": {1: 2.0},
        "none": {},
    }
    found = differences_to(reference, arms)
    assert set(found) == {"a", "b", "shifted", "one"}
    assert found["a"].adjusted_p == pytest.approx(2 * found["a"].p)
    assert (found["a"].arms, found["shifted"].arms) == (2, 0)
    assert found["shifted"].adjusted_p is None
    assert found["one"].adjusted_p is None
    # Shared with the noisier arm, the quiet one's variance is more than its own.
    assert found["a"].standard_error > np.std(found["a"].differences, ddof=1) / math.sqrt(3)


@pytest.mark.parametrize(("n", "floor"), [(1, 1.0), (2, 0.5), (3, 0.25), (5, 0.0625), (6, 0.03125)])
def test_the_sign_flip_test_reaches_its_floor_and_no_less(n, floor):
    assert sign_flip_floor(n) == floor
    assert sign_flip_p([0.1 + 0.01 * k for k in range(n)]) == floor


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=7))
def test_the_sign_flip_test_equals_scipys_exact_permutation_test(differences):
    expected = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_p(differences) == pytest.approx(expected.pvalue)


def test_the_sign_flip_test_samples_when_there_are_too_many_patterns():
    assert sign_flip_p([0.1] * 20) < 0.001
    # The last that is enumerated: exactly the least that there can be.
    assert sign_flip_p([0.1] * 16) == sign_flip_floor(16)


def test_texts():
    estimate = Estimate(n=3, mean=-0.004, low=-0.03, high=0.022)
    assert difference_text(estimate) == "-0.004 [-0.030, 0.022]"
    assert difference_text(estimate, flip=True) == "0.004 [-0.022, 0.030]"
    assert difference_text(Estimate(n=1, mean=-0.00001, low=None, high=None)) == "0.000"
    barely = Estimate(n=3, mean=0.3, low=4e-4, high=0.6)
    assert difference_text(barely) == "0.3000 [0.0004, 0.6000]"
    assert difference_text(Estimate(n=3, mean=2e-3, low=1.5e-3, high=2.5e-3)) == "0.00200 [0.00150, 0.00250]"
    assert [decimals(width) for width in (None, 0.0, 0.3, 0.02, 0.002, 1e-9, 1e-30)] == [3, 3, 3, 3, 4, 6, 3]
    assert [p_text(p) for p in (1e-9, 0.013, 0.0063, 0.3, 1.0)] == [
        "p < 0.001",
        "p = 0.013",
        "p = 0.0063",
        "p = 0.30",
        "p = 1.00",
    ]
