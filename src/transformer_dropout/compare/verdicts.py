"""Turns paired differences into verdicts: what is shown about each arm, and what is not."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..runs.task import Metric
from .metrics import difference_unit, improvement, in_shown_unit, with_unit
from .moderation import seeds_for
from .records import Comparison, Run
from .reference import Reference, reference_arm
from .statistics import Difference, difference_text, differences_to, mean_interval, p_text

# The difference that seeds are planned for where nobody states one, as a share of the reference's value.
SHARE_TO_SHOW = 0.02

Kind = Literal[
    "reference",
    "better",
    "worse",
    "no difference",
    "no spread",
    "not enough seeds",
    "failed",
    "unfinished",
    "not run",
]
SHOWN: tuple[Kind, ...] = ("better", "worse")

_UNUSABLE: dict[str, Kind] = dict.fromkeys(("running", "interrupted", "killed"), "unfinished")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the comparison shows about one arm.

    Args:
        arm: the arm's name.
        kind: the verdict in a word or three.
        text: the verdict in one line, with its interval and how many seeds are missing.
        difference: arm minus reference at the end of the runs, or None if no seed is common to both.
        at_best: the same between the best evaluations of each run.
        more_seeds: how many further seeds would show the stated difference; None where it cannot be told.
    """

    arm: str
    kind: Kind
    text: str
    difference: Difference | None
    at_best: Difference | None
    more_seeds: int | float | None


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What is shown about every arm of one comparison.

    Args:
        reference: the arm that the others are compared with.
        verdicts: one per arm, in the order of the arms.
        to_show: the difference that ``more_seeds`` is about, as recorded; None where there is none.
    """

    reference: Reference
    verdicts: dict[str, Verdict]
    to_show: float | None


def judge(comparison: Comparison) -> Judgement:
    """Return the reference and one verdict per arm; runs that did not finish are counted, not compared."""
    reference = reference_arm(comparison)
    last = differences(comparison, reference.name)
    best = differences(comparison, reference.name, comparison.best_values)
    to_show = difference_to_show(comparison, reference.name)
    verdicts = {}
    for arm in comparison.arms:
        kind, text = _verdict(comparison, arm, reference.name, last.get(arm))
        verdicts[arm] = Verdict(
            arm=arm,
            kind=kind,
            text=text,
            difference=last.get(arm),
            at_best=best.get(arm),
            more_seeds=more_seeds(last.get(arm), to_show),
        )
    return Judgement(reference=reference, verdicts=verdicts, to_show=to_show)


def differences(
    comparison: Comparison, reference: str, values: Callable[[str], dict[int, float]] | None = None
) -> dict[str, Difference]:
    """Return the difference of every other arm to one, tested together.

    Args:
        comparison: the runs.
        reference: the arm to compare with.
        values: gives the numbers of an arm by seed; None for those at the end of its runs.
    """
    values = values or comparison.values
    return differences_to(
        values(reference), {arm: values(arm) for arm in comparison.arms if arm != reference}
    )


def kind_of(metric: Metric, difference: Difference | None) -> Kind | None:
    """Return ``better``, ``worse`` or ``no difference``; None where there is no interval to read."""
    if difference is None or difference.estimate.low is None:
        return None
    if not difference.estimate.without_zero:
        return "no difference"
    return "better" if improvement(metric, difference.estimate.mean) > 0 else "worse"


def interval_text(metric: Metric, difference: Difference, *, improved: bool = False) -> str:
    """Return ``0.49 [0.42, 0.57] nats``: a difference in the unit that is shown.

    Args:
        metric: what differs.
        difference: as recorded.
        improved: write it so that it is above 0 for an improvement.
    """
    flip = improved and metric.better == "lower"
    return with_unit(
        difference_text(in_shown_unit(metric, difference.estimate), flip=flip), difference_unit(metric)
    )


def difference_to_show(comparison: Comparison, reference: str) -> float | None:
    """Return the difference that seeds are planned for: the stated one, else 2 % of the reference."""
    if comparison.difference is not None:
        return comparison.difference
    values = list(comparison.values(reference).values())
    share = abs(SHARE_TO_SHOW * mean_interval(values).mean) if values else 0.0
    if share == 0.0:
        return None
    return float(f"{share:.0e}")


def more_seeds(difference: Difference | None, to_show: float | None) -> int | float | None:
    """Return how many further seeds would show a true difference of that size; infinity for over 1,000."""
    if difference is None or to_show is None or not difference.standard_error or difference.df is None:
        return None
    n = difference.estimate.n
    needed = seeds_for(
        to_show, standard_error=difference.standard_error, df=difference.df, n=n, arms=difference.arms
    )
    return math.inf if needed is None else max(0, needed - n)


def failure(run: Run) -> str:
    """Return why a run does not count, in one line: its status, and the last line of a traceback."""
    if run.status == "finished":
        wanted = f"a finite validation {run.task.metric.name}" if run.task.metrics else "any metric"
        return f"failed: finished without {wanted}"
    if run.status == "killed":
        return "killed: its process is gone; the same command continues it"
    lines = [line.strip() for line in str(run.record.get("error") or "").splitlines() if line.strip()]
    if not lines:
        return run.status
    return f"{run.status}: {lines[-1] if lines[0].startswith('Traceback') else lines[0]}"


def _verdict(
    comparison: Comparison, arm: str, reference: str, difference: Difference | None
) -> tuple[Kind, str]:
    usable, runs, wanted = comparison.usable(arm), comparison.of(arm), len(comparison.seeds)
    missing = f"; {len(usable)} of {wanted} seeds finished" if len(usable) < wanted else ""
    kind: Kind
    if not usable:
        kind = _UNUSABLE.get(runs[0].status, "failed") if runs else "not run"
        text = failure(runs[0]) if runs else "not run"
        text = f"reference, {text}" if arm == reference else text
    elif arm == reference:
        kind, text = "reference", "reference"
    elif difference is None or difference.estimate.n < 2:
        kind, text = "not enough seeds", "not enough seeds"
        text += f": {difference.estimate.n if difference else 0} in common with {reference}"
    elif difference.constant:
        kind = "no spread"
        size = interval_text(comparison.metric, difference)
        text = f"no verdict: the difference to {reference} is {size} at every seed"
    else:
        kind, text = _shown(comparison.metric, difference, reference)
    return kind, text + missing


def _shown(metric: Metric, difference: Difference, reference: str) -> tuple[Kind, str]:
    kind = kind_of(metric, difference)
    p = p_text(difference.adjusted_p if difference.adjusted_p is not None else 1.0)
    if kind is None or kind == "no difference":
        return "no difference", f"no difference shown ({interval_text(metric, difference)}, {p})"
    estimate = in_shown_unit(metric, difference.estimate)
    size, _, interval = difference_text(estimate, flip=estimate.mean < 0).partition(" ")
    return kind, f"{kind} than {reference} by {with_unit(size, difference_unit(metric))} {interval} ({p})"
