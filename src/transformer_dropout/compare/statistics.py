"""Statistics over seeds: pure functions from one number per seed to means, intervals and paired differences.

The interval of a difference is the one that its verdict reads: the intervals of all arms hold at once with
95 %, and a difference is shown exactly where its interval leaves out 0.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from scipy import stats

from .moderation import moderated_tests

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds, with its interval where at least two seeds vary.

    Args:
        n: number of seeds.
        mean: their mean, in the metric's unit.
        low: lower end of the interval, or None without one.
        high: upper end of the interval, or None without one.
    """

    n: int
    mean: float
    low: float | None
    high: float | None

    @property
    def half_width(self) -> float | None:
        """Half the interval's width, the number after ``±``."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def without_zero(self) -> bool:
        """Whether there is an interval and 0 lies outside."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def times(self, factor: float) -> "Estimate":
        """Return the estimate in another unit; a negative factor turns it round."""
        ends = [None if end is None else factor * end for end in (self.low, self.high)]
        low, high = ends if factor >= 0 else reversed(ends)
        return replace(self, mean=factor * self.mean, low=low, high=high)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Arm minus reference over the seeds both have.

    Args:
        estimate: mean difference with its interval, one of those that hold for all arms at once with 95 %.
        differences: one per common seed, in order of seed.
        p: two-sided p value of the moderated paired t-test of this arm alone; None if it cannot be computed.
        adjusted_p: p times the number of arms compared; below 0.05 where the interval leaves out 0.
        standard_error: of the mean, with the moderated variance; None without a test.
        df: degrees of freedom of the test, those of the shared prior included; None without a test.
        arms: how many arms the adjustment is over.
        sign_flip_p: exact two-sided sign-flip permutation p value, as a second opinion.
        sign_flip_floor: the smallest value ``sign_flip_p`` could take with this many seeds.
    """

    estimate: Estimate
    differences: tuple[float, ...]
    p: float | None = None
    adjusted_p: float | None = None
    standard_error: float | None = None
    df: float | None = None
    arms: int = 0
    sign_flip_p: float
    sign_flip_floor: float

    @property
    def constant(self) -> bool:
        """Whether all of at least two differences are one non-zero number, which no t-test can judge."""
        return self.estimate.n >= 2 and self.p is None


def mean_interval(values: Sequence[float]) -> Estimate:
    """Return the mean and its 95 % t-interval: ``mean ± t(n-1) * s / sqrt(n)``.

    Args:
        values: at least one finite number. One value has no interval; equal values have one of no width.
    """
    array = np.asarray(values, dtype=float)
    mean, n = float(array.mean()), len(array)
    if n < 2:
        return Estimate(n=n, mean=mean, low=None, high=None)
    if _constant(array):
        return Estimate(n=n, mean=mean, low=mean, high=mean)
    interval = stats.ttest_1samp(array, 0.0).confidence_interval(CONFIDENCE)
    return Estimate(n=n, mean=mean, low=float(interval.low), high=float(interval.high))


def differences_to(
    reference: Mapping[int, float], arms: Mapping[str, Mapping[int, float]]
) -> dict[str, Difference]:
    """Return each arm's difference to the reference, tested together with those of all other arms.

    Equal numbers at every seed give the interval [0, 0] and p = 1. A non-zero difference that is the same at
    every seed gives no interval and no p: the seeds did not vary what they should, and t would be infinite.

    Args:
        reference: the reference's number by seed.
        arms: for every other arm, its number by seed; arms without a common seed are left out of the answer.
    """
    gaps = {name: _gaps(values, reference) for name, values in arms.items()}
    found = {name: _untested(gap) for name, gap in gaps.items() if len(gap)}
    tested = [name for name in found if len(gaps[name]) >= 2 and not _constant(gaps[name])]
    if not tested:
        return found
    chosen = [gaps[name] for name in tested]
    tests = moderated_tests(
        [gap.mean() for gap in chosen], [gap.var(ddof=1) for gap in chosen], [len(gap) for gap in chosen]
    )
    for at, name in enumerate(tested):
        mean, half = float(chosen[at].mean()), float(tests.half_width[at])
        found[name] = replace(
            found[name],
            estimate=Estimate(n=len(chosen[at]), mean=mean, low=mean - half, high=mean + half),
            p=float(tests.p[at]),
            adjusted_p=float(tests.adjusted_p[at]),
            standard_error=float(tests.standard_error[at]),
            df=float(tests.df[at]),
            arms=len(tested),
        )
    return found


def _gaps(arm: Mapping[int, float], reference: Mapping[int, float]) -> np.ndarray:
    return np.array([arm[seed] - reference[seed] for seed in sorted(arm.keys() & reference.keys())])


def _untested(gaps: np.ndarray) -> Difference:
    equal = len(gaps) >= 2 and not np.any(gaps)
    ends = 0.0 if equal else None
    return Difference(
        estimate=Estimate(n=len(gaps), mean=float(gaps.mean()), low=ends, high=ends),
        differences=tuple(gaps.tolist()),
        p=1.0 if equal else None,
        adjusted_p=1.0 if equal else None,
        sign_flip_p=sign_flip_p(gaps.tolist()),
        sign_flip_floor=sign_flip_floor(len(gaps)),
    )


def sign_flip_p(differences: Sequence[float]) -> float:
    """Return the exact two-sided p of the sign-flip test: the share of 2^n sign patterns at least as extreme.

    Above 16 seeds the patterns are drawn at random (20,000 of them, fixed seed) instead of enumerated.

    Args:
        differences: one paired difference per seed.
    """
    gaps = np.asarray(differences, dtype=float)
    if len(gaps) > 16:
        result = stats.permutation_test(
            (gaps,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(0)
        )
        return float(result.pvalue)
    sums = np.array(list(product((-1.0, 1.0), repeat=len(gaps)))) @ gaps
    # Rounding must not turn a tie with the observed sum into a miss.
    return float(np.mean(np.abs(sums) >= abs(gaps.sum()) - 1e-12 * np.abs(gaps).sum()))


def sign_flip_floor(n: int) -> float:
    """Return ``2 / 2^n``, the smallest sign-flip p with n pairs: 0.25 at 3, 0.0625 at 5, 0.031 at 6."""
    return min(1.0, 2.0 / 2.0**n)


def difference_text(estimate: Estimate, *, flip: bool = False) -> str:
    """Return ``-0.004 [-0.030, 0.020]``: a difference with its interval, if it has one.

    An interval without 0 is written with as many decimals as show that.

    Args:
        estimate: the difference.
        flip: write the improvement (reference minus arm) instead.
    """
    shown = estimate.times(-1.0) if flip else estimate
    digits = decimals(shown.half_width)
    if shown.low is None or shown.high is None:
        return f"{_zero(shown.mean, digits):.{digits}f}"
    if shown.without_zero:
        digits = max(digits, math.ceil(-math.log10(min(abs(shown.low), abs(shown.high)))))
    mean, low, high = (f"{_zero(value, digits):.{digits}f}" for value in (shown.mean, shown.low, shown.high))
    return f"{mean} [{low}, {high}]"


def decimals(half_width: float | None) -> int:
    """Return how many decimals show two digits of a half width: at least 3, at most 6."""
    if not half_width or half_width < 1e-9:
        return 3
    return min(6, max(3, 1 - math.floor(math.log10(half_width))))


def p_text(p: float) -> str:
    """Return ``p = 0.013`` or ``p < 0.001``."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}" if p < 0.0995 else f"p = {p:.2f}"


def _zero(value: float, digits: int) -> float:
    """Round, and write zero without a minus sign."""
    return round(value, digits) + 0.0


def _constant(array: np.ndarray) -> bool:
    """Differences of losses carry rounding near 1e-16: below 1e-12 there is no spread to measure."""
    return bool(np.ptp(array) <= 1e-12 * max(1.0, float(np.abs(array).max())))
