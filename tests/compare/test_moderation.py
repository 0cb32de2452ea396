"""Moderated tests: against formulas and scipy, their error rate on known truth, and seeds that are enough."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from transformer_dropout.compare.moderation import (
    PRIOR_SHARE,
    fit_prior,
    inverse_trigamma,
    moderated_tests,
    seeds_for,
)


def test_one_difference_has_nothing_to_share():
    tests = moderated_tests([0.3], [0.04], [4])
    expected = stats.ttest_ind_from_stats(0.3, 0.2, 4, 0.0, 1e-12, 10**9, equal_var=False)
    assert tests.df == 3
    assert tests.p == pytest.approx(expected.pvalue)
    assert tests.half_width == pytest.approx(stats.t.isf(0.025, 3) * 0.1)


def test_the_formula_by_hand():
    variances, counts = np.array([0.01, 0.04, 0.09]), [3, 3, 3]
    prior = fit_prior(variances, np.full(3, 2.0))
    shared = PRIOR_SHARE * prior.df
    tests = moderated_tests([0.1, 0.2, 0.3], variances, counts)
    moderated = (shared * prior.variance + 2 * variances) / (shared + 2)
    assert tests.standard_error == pytest.approx(np.sqrt(moderated / 3))
    assert tests.df == pytest.approx(2 + shared)
    assert tests.adjusted_p == pytest.approx(np.minimum(1, 3 * tests.p))
    # The quiet arm is taken to be noisier than it looked, the noisy one quieter.
    assert moderated[0] > 0.01
    assert moderated[2] < 0.09


def test_without_a_share_they_are_plain_t_tests_with_bonferronis_correction():
    means, variances = np.array([0.1, 0.2]), np.array([0.01, 0.09])
    tests = moderated_tests(means, variances, [5, 4], share=0.0)
    t = means / np.sqrt(variances / [5, 4])
    assert tests.p == pytest.approx(2 * stats.t.sf(t, [4, 3]))
    assert tests.half_width == pytest.approx(stats.t.isf(0.0125, [4, 3]) * np.sqrt(variances / [5, 4]))


def test_the_prior_of_many_variances_is_found_again():
    rng = np.random.default_rng(0)
    true_df, true_variance, df = 8.0, 0.3, np.full(4000, 4.0)
    spread = true_df * true_variance / rng.chisquare(true_df, 4000)
    prior = fit_prior(spread * rng.chisquare(4, 4000) / 4, df)
    assert prior.df == pytest.approx(true_df, rel=0.15)
    assert prior.variance == pytest.approx(true_variance, rel=0.05)


def test_equal_variances_are_pooled_and_count_for_half_of_the_others():
    prior = fit_prior(np.array([0.02, 0.02, 0.02]), np.array([2.0, 2.0, 3.0]))
    assert prior.variance == pytest.approx(0.02)
    assert prior.df == 0.5 * (2 + 2)


def test_a_variance_of_nearly_nothing_does_not_rule_the_others():
    variances = np.array([0.01, 0.02, 0.03, 0.015, 0.025])
    without = fit_prior(variances, np.full(5, 4.0))
    tiny = fit_prior(np.append(variances, 1e-300), np.full(6, 4.0))
    assert np.isfinite([tiny.df, tiny.variance]).all()
    assert tiny.df < without.df


@given(st.floats(1e-4, 1e4))
def test_trigamma_is_inverted(value):
    assert special.polygamma(1, inverse_trigamma(value)) == pytest.approx(value, rel=1e-6)


arms = st.lists(st.tuples(st.floats(-1, 1), st.floats(1e-9, 10), st.integers(2, 9)), min_size=1, max_size=20)


@given(arms)
def test_an_interval_leaves_out_zero_exactly_where_the_adjusted_p_is_below_the_level(arms):
    means, variances, counts = map(np.array, zip(*arms, strict=True))
    tests = moderated_tests(means, variances, counts)
    sure = np.abs(tests.adjusted_p - 0.05) > 1e-9
    assert ((np.abs(means) > tests.half_width) == (tests.adjusted_p < 0.05))[sure].all()
    assert (tests.df >= counts - 1).all()


def errors(share, arms=12, seeds=3, draws=1500):
    """Return how often an arm is shown to differ where none does, from arms of unequal noise."""
    rng, found = np.random.default_rng(0), 0
    for _ in range(draws):
        noise = rng.gamma(2.0, 0.5, arms)[:, None] * rng.normal(size=(arms, seeds))
        gaps = noise[1:] - noise[0]
        tests = moderated_tests(gaps.mean(1), gaps.var(1, ddof=1), [seeds] * (arms - 1), share=share)
        found += bool((tests.adjusted_p < 0.05).any())
    return found / draws


def test_the_error_rate_holds_with_the_share_that_is_used_and_not_with_all_of_the_prior():
    assert errors(PRIOR_SHARE) <= 0.05 < errors(1.0) or errors(PRIOR_SHARE) <= 0.05 < errors(4.0)


def test_enough_seeds_are_the_ones_at_which_a_difference_is_shown():
    n = seeds_for(0.1, standard_error=0.06, df=2, n=3, arms=1)
    assert n is not None
    deviation = 0.06 * 3**0.5
    rng = np.random.default_rng(0)
    for count, enough in ((n, True), (n - 2, False)):
        gaps = rng.normal(0.1, deviation, (4000, count))
        shown = (stats.ttest_1samp(gaps, 0.0, axis=1).pvalue < 0.05).mean()
        assert (shown > 0.78) == enough


def test_more_arms_and_smaller_differences_need_more_seeds():
    few = seeds_for(0.1, standard_error=0.06, df=2, n=3, arms=1)
    assert few < seeds_for(0.1, standard_error=0.06, df=2, n=3, arms=10)
    assert few < seeds_for(0.05, standard_error=0.06, df=2, n=3, arms=1)
    assert seeds_for(1e-4, standard_error=0.06, df=2, n=3, arms=1) is None
    assert seeds_for(100.0, standard_error=0.06, df=2, n=3, arms=1) == 2
