"""Paired tests for few seeds: variances that the arms share in part, and intervals that hold all at once.

Three seeds tell little about one arm's variance, seventeen arms together tell more. The moderated t of Smyth
(2004, "Linear models and empirical Bayes methods for assessing differential expression in microarray
experiments") takes the variances of all arms for draws around a common one and shrinks each towards it:

    s~_i^2 = (d_0 s_0^2 + d_i s_i^2) / (d_0 + d_i),    t_i = mean_i / (s~_i / sqrt(n_i)),

with d_0 + d_i degrees of freedom. The differences share a reference, so they know less of the prior than as
many independent ones, and d_0 is taken at a quarter of what is fitted; ``experiments/moderation`` counts the
errors with and without. Two arms make one difference: with nothing to share, the plain paired t-test is left.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special, stats

LEVEL = 0.05
# The share of the fitted prior's degrees of freedom that is believed.
PRIOR_SHARE = 0.25
# The chance to show a difference that the number of seeds is planned for.
POWER = 0.8
MOST_SEEDS = 1000

_FLOOR = 1e-5  # of the median: a variance of nearly nothing must not rule a mean of logarithms


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What the arms share: variances are spread around ``variance`` as if it came with ``df``.

    Args:
        df: degrees of freedom, 0 where nothing is shared.
        variance: the common variance, in squared units of the differences.
    """

    df: float
    variance: float


@dataclass(frozen=True, kw_only=True)
class Tests:
    """Moderated tests of several mean differences against 0; each array has one element per arm.

    Args:
        standard_error: of the mean, from the moderated variance.
        df: degrees of freedom, the prior's included.
        p: two-sided, of this arm alone.
        adjusted_p: the same times the number of arms, at most 1.
        half_width: of the interval that contains 0 exactly where ``adjusted_p`` is 0.05 or more.
    """

    standard_error: np.ndarray
    df: np.ndarray
    p: np.ndarray
    adjusted_p: np.ndarray
    half_width: np.ndarray


def moderated_tests(
    means: Sequence[float], variances: Sequence[float], counts: Sequence[int], *, share: float = PRIOR_SHARE
) -> Tests:
    """Test each mean difference against 0, with one interval for all at 95 %.

    The intervals are Bonferroni's over m arms: ``mean ± t(1 - 0.05 / (2 m); d_0 + d_i) s~_i / sqrt(n_i)``.
    With 95 % they all hold at once, whatever the arms' correlation, and the test is whether 0 lies outside.

    Args:
        means: mean difference of each arm.
        variances: sample variance of its differences, above 0.
        counts: how many differences, at least 2.
        share: of the fitted prior's degrees of freedom to believe; 0 gives plain t-tests.
    """
    mean, variance, n = (np.asarray(values, dtype=float) for values in (means, variances, counts))
    own = n - 1.0
    prior = fit_prior(variance, own)
    shared = share * prior.df
    moderated = (shared * prior.variance + own * variance) / (shared + own)
    error, df = np.sqrt(moderated / n), shared + own
    p = 2.0 * stats.t.sf(np.abs(mean) / error, df)
    half = stats.t.isf(LEVEL / (2.0 * max(1, len(n))), df) * error
    return Tests(standard_error=error, df=df, p=p, adjusted_p=np.minimum(1.0, len(n) * p), half_width=half)


def fit_prior(variances: np.ndarray, df: np.ndarray) -> Prior:
    """Return the scaled inverse-chi-square prior of several sample variances, from the moments of their log.

    The mean of ``log s^2`` gives the prior's variance, and the excess of its spread over that of chi-square
    noise the degrees of freedom (Smyth 2004, section 6.2). Without excess the prior has the pooled variance.
    It counts for at most half of what the other arms' differences do, as they share the reference's noise.

    Args:
        variances: above 0.
        df: degrees of freedom of each.
    """
    if len(variances) < 2:
        return Prior(df=0.0, variance=0.0)
    floored = np.maximum(variances, _FLOOR * np.median(variances))
    logs = np.log(floored) - special.digamma(df / 2) + np.log(df / 2)
    spread = logs.var(ddof=1) - special.polygamma(1, df / 2).mean()
    most = 0.5 * float(df.sum() - df.max())
    if spread <= 0:
        return Prior(df=most, variance=float((df * variances).sum() / df.sum()))
    fitted = 2.0 * inverse_trigamma(float(spread))
    variance = math.exp(logs.mean() + special.digamma(fitted / 2) - math.log(fitted / 2))
    return Prior(df=min(fitted, most), variance=variance)


def inverse_trigamma(value: float) -> float:
    """Return x with ``trigamma(x) = value``, for a value above 0."""
    # trigamma(x) lies between 1 / x and 1 / x + 1 / x^2.
    low, high = 1.0 / value, 1.0 / value + 1.0 / math.sqrt(value)
    root = optimize.brentq(lambda x: special.polygamma(1, x) - value, 0.5 * low, 2.0 * high)
    return float(root)  # type: ignore[arg-type]


def seeds_for(
    difference: float, *, standard_error: float, df: float, n: int, arms: int, power: float = POWER
) -> int | None:
    """Return with how many seeds in all a true difference would be shown, given the variance seen so far.

    It is the smallest number at which the interval over all arms leaves out 0 with a chance of ``power``.

    Args:
        difference: the true difference.
        standard_error: of the mean over the seeds there are.
        df: its degrees of freedom.
        n: how many seeds there are.
        arms: how many arms are compared with the reference.
        power: the chance to be had.

    Returns:
        None when more than 1,000 are needed.
    """
    deviation, extra = standard_error * math.sqrt(n), df - (n - 1)

    def shown(count: int) -> bool:
        degrees = extra + count - 1
        critical = float(stats.t.isf(LEVEL / (2.0 * arms), degrees))
        shift = abs(difference) * math.sqrt(count) / deviation
        # Beyond this the non-central t is certain, and its series no longer converges.
        return shift > critical + 30 or float(stats.nct.sf(critical, degrees, shift)) >= power

    if not shown(MOST_SEEDS):
        return None
    low, high = 1, MOST_SEEDS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if shown(middle) else (middle, high)
    return high
