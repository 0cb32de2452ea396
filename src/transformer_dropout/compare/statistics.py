"""Paired statistics over seeds: pure functions from losses to intervals and p values.

The displayed interval of a difference is the plain 95 % paired t-interval. Whether a difference is *shown* is
decided by its p value after Holm's correction over all arms compared, so an interval may exclude zero while
the verdict is "no difference shown".
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds, with its t-interval where at least two seeds vary.

    Args:
        n: number of seeds.
        mean: their mean, in nats per token.
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


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Arm minus reference over the seeds both have; negative is better for a loss.

    Args:
        estimate: mean difference with the plain 95 % paired t-interval.
        differences: one per common seed, in order of seed.
        p: two-sided p value of the paired t-test; None if it cannot be computed.
        holm_p: p after Holm's correction over the arms compared; the verdict reads this one.
        sign_flip_p: exact two-sided sign-flip permutation p value, as a second opinion.
        sign_flip_floor: the smallest value ``sign_flip_p`` could take with this many seeds.
    """

    estimate: Estimate
    differences: tuple[float, ...]
    p: float | None
    holm_p: float | None
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


def paired_difference(arm: Mapping[int, float], reference: Mapping[int, float]) -> Difference | None:
    """Return arm minus reference over their common seeds, before any correction; None without a common seed.

    Equal losses at every seed give the interval [0, 0] and p = 1. A non-zero difference that is the same at
    every seed gives no interval and no p: the seeds did not vary what they should, and t would be infinite.

    Args:
        arm: loss by seed.
        reference: loss by seed.
    """
    seeds = sorted(arm.keys() & reference.keys())
    if not seeds:
        return None
    gaps = np.array([arm[seed] - reference[seed] for seed in seeds])
    estimate, p = mean_interval(gaps.tolist()), None
    if len(seeds) >= 2 and not _constant(gaps):
        p = float(stats.ttest_1samp(gaps, 0.0).pvalue)
    elif len(seeds) >= 2 and not np.any(gaps):
        p = 1.0
    else:
        estimate = replace(estimate, low=None, high=None)
    return Difference(
        estimate=estimate,
        differences=tuple(gaps.tolist()),
        p=p,
        holm_p=p,
        sign_flip_p=sign_flip_p(gaps.tolist()),
        sign_flip_floor=sign_flip_floor(len(seeds)),
    )


def differences_to(
    reference: Mapping[int, float], arms: Mapping[str, Mapping[int, float]]
) -> dict[str, Difference]:
    """Return each arm's difference to the reference, Holm-adjusted over the arms that have a p value.

    Args:
        reference: the reference's loss by seed.
        arms: for every other arm, its loss by seed; arms without a common seed are left out of the answer.
    """
    raw = {name: paired_difference(losses, reference) for name, losses in arms.items()}
    found = {name: difference for name, difference in raw.items() if difference is not None}
    tested = {name: difference.p for name, difference in found.items() if difference.p is not None}
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    return {name: replace(difference, holm_p=adjusted.get(name)) for name, difference in found.items()}


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p values: ``max over j <= i of min(1, (m - j) * p_(j))``, j from 0.

    They keep the chance of any false verdict over all arms below the level, and never exceed Bonferroni's.

    Args:
        p_values: raw p values, in any order; the answer has the same order.
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, p[order] * np.arange(len(p), 0, -1)))
    return adjusted.tolist()


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
    """Return ``-0.004 [-0.030, 0.020]``: a difference in nats with its interval, if it has one.

    Args:
        estimate: the difference.
        flip: write the improvement (reference minus arm) instead.
    """
    sign, digits = (-1.0 if flip else 1.0), decimals(estimate.half_width)
    mean = f"{_zero(sign * estimate.mean, digits):.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return mean
    low, high = sorted((sign * estimate.low, sign * estimate.high))
    return f"{mean} [{_zero(low, digits):.{digits}f}, {_zero(high, digits):.{digits}f}]"


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
