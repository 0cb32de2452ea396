"""The tables of a comparison: losses, differences and masks in one, what they cost in the other."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .records import Comparison, Run, number
from .statistics import Estimate, decimals, difference_text, mean_interval
from .verdicts import Judgement

NOTHING = "–"
_PREFIXES = (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0))


@dataclass(frozen=True, kw_only=True)
class Table:
    """Column names and rows of text, for a terminal, Markdown or a page. The first column is the arm.

    Args:
        columns: names, with the unit where there is one.
        rows: one per arm, as long as ``columns``.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """Return the table in GitHub's Markdown, numbers to the right."""
        lines = [self.columns, ("---", *("---:" for _ in self.columns[1:])), *self.rows]
        return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines) + "\n"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one arm costs, as means over its finished runs; None where no run says.

    Args:
        parameters: trainable parameters of model and regularizer.
        steps: optimizer steps a run.
        training_flops: floating-point operations a run spent on training.
        wall_seconds: seconds a run took, evaluation included.
        step_seconds: seconds a step, the median over a run.
        peak_memory_bytes: the largest peak of any run.
        inference_flops: floating-point operations for one token at inference.
    """

    parameters: float | None
    steps: float | None
    training_flops: float | None
    wall_seconds: float | None
    step_seconds: float | None
    peak_memory_bytes: float | None
    inference_flops: float | None


def cost_of(comparison: Comparison, arm: str) -> Cost:
    """Return the cost of one arm over its finished runs."""
    runs = comparison.usable(arm)
    peaks = [
        peak for run in runs for row in run.metrics if (peak := number(row, "peak_memory_bytes")) is not None
    ]
    return Cost(
        parameters=_mean(number(run.section("parameters"), "total") for run in runs),
        steps=_mean(_last(run, "step") for run in runs),
        training_flops=_mean(map(_training_flops, runs)),
        wall_seconds=_mean(number(run.section("result"), "wall_seconds") for run in runs),
        step_seconds=_mean(map(_step_seconds, runs)),
        peak_memory_bytes=max(peaks, default=None),
        inference_flops=_mean(number(run.section("flops"), "inference_per_token") for run in runs),
    )


def result_estimate(comparison: Comparison, arm: str, key: str) -> Estimate | None:
    """Return mean and interval over seeds of one number of the result, such as ``val_loss``, or None."""
    found = [number(run.section("result"), key) for run in comparison.usable(arm)]
    known = [value for value in found if value is not None]
    return mean_interval(known) if known else None


def result_table(comparison: Comparison, judgement: Judgement) -> Table:
    """Return one row per arm: losses, difference to the reference, kept fraction, size and verdict."""
    costs = {arm: cost_of(comparison, arm) for arm in comparison.arms}
    size_unit, size_scale = unit([cost.parameters for cost in costs.values()])
    rows = []
    for arm in comparison.arms:
        verdict = judgement.verdicts[arm]
        difference = verdict.difference
        rows.append(
            (
                arm,
                _seeds(comparison, arm),
                _loss(result_estimate(comparison, arm, "train_loss"), with_interval=False),
                _loss(result_estimate(comparison, arm, "val_loss")),
                difference_text(difference.estimate) if difference else NOTHING,
                _keep(comparison, arm),
                _scaled(costs[arm].parameters, size_scale, 2),
                verdict.kind,
            )
        )
    columns = (
        "arm",
        "seeds",
        "train loss",
        "val loss ± 95 %",
        "difference [95 %]",
        "keep % / evaluated",
        f"size, {size_unit}".rstrip(", "),
        "verdict",
    )
    return Table(columns=columns, rows=tuple(rows))


def cost_table(comparison: Comparison) -> Table:
    """Return one row per arm: validation loss beside training cost three ways, size and inference cost."""
    costs = {arm: cost_of(comparison, arm) for arm in comparison.arms}
    train_unit, train_scale = unit([cost.training_flops for cost in costs.values()])
    size_unit, size_scale = unit([cost.parameters for cost in costs.values()])
    infer_unit, infer_scale = unit([cost.inference_flops for cost in costs.values()])
    rows = tuple(
        (
            arm,
            _loss(result_estimate(comparison, arm, "val_loss"), with_interval=False),
            _scaled(cost.steps, 1.0, 0),
            _scaled(cost.training_flops, train_scale, 2),
            _scaled(cost.wall_seconds, 1.0, 1),
            _scaled(cost.step_seconds, 1e-3, 1),
            _scaled(cost.peak_memory_bytes, 1e6, 0),
            _scaled(cost.parameters, size_scale, 2),
            _scaled(cost.inference_flops, infer_scale, 2),
        )
        for arm, cost in costs.items()
    )
    columns = (
        "arm",
        "val loss, nats",
        "steps",
        f"training, {train_unit}FLOP",
        "run, s",
        "step, ms",
        "peak memory, MB",
        f"parameters, {size_unit}".rstrip(", "),
        f"inference, {infer_unit}FLOP/token",
    )
    return Table(columns=columns, rows=rows)


def detail_table(judgement: Judgement) -> Table:
    """Return every p value: the paired t-test's, Holm's, and the exact sign-flip test's with its floor."""
    rows = []
    for arm, verdict in judgement.verdicts.items():
        difference = verdict.difference
        if difference is None:
            continue
        each = ", ".join(f"{value:+.4f}" for value in difference.differences)
        ps = (difference.p, difference.holm_p, difference.sign_flip_p, difference.sign_flip_floor)
        rows.append(
            (arm, str(difference.estimate.n), each, *(NOTHING if p is None else f"{p:.3g}" for p in ps))
        )
    columns = (
        "arm",
        "pairs",
        "difference at each seed, nats",
        "t-test p",
        "Holm p",
        "sign-flip p",
        "its floor",
    )
    return Table(columns=columns, rows=tuple(rows))


def unit(values: Sequence[float | None]) -> tuple[str, float]:
    """Return the metric prefix (``P``, ``T``, ``G`` ...) and its factor that suit the largest value."""
    largest = max((value for value in values if value is not None), default=0.0)
    return next(((prefix, scale) for prefix, scale in _PREFIXES if largest >= scale), ("", 1.0))


def _seeds(comparison: Comparison, arm: str) -> str:
    finished, wanted = len(comparison.usable(arm)), len(comparison.seeds)
    return str(finished) if finished == wanted else f"{finished} of {wanted}"


def _loss(estimate: Estimate | None, *, with_interval: bool = True) -> str:
    if estimate is None:
        return NOTHING
    half = estimate.half_width
    if half is None or not with_interval:
        return f"{estimate.mean:.3f}"
    digits = decimals(half)
    return f"{estimate.mean:.{digits}f} ± {half:.{digits}f}"


def _keep(comparison: Comparison, arm: str) -> str:
    found = [result_estimate(comparison, arm, key) for key in ("keep", "keep_eval")]
    if not any(found):
        return NOTHING
    return " / ".join(NOTHING if estimate is None else f"{100 * estimate.mean:.1f}" for estimate in found)


def _training_flops(run: Run) -> float | None:
    per_token, tokens = number(run.section("flops"), "training_per_token"), _last(run, "tokens")
    return None if per_token is None or tokens is None else per_token * tokens


def _step_seconds(run: Run) -> float | None:
    """The median is not moved by the first steps, which compile and warm up."""
    known = sorted(seconds for row in run.metrics if (seconds := number(row, "step_seconds")) is not None)
    return known[len(known) // 2] if known else None


def _last(run: Run, key: str) -> float | None:
    return number(run.metrics[-1], key) if run.metrics else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _scaled(value: float | None, scale: float, digits: int) -> str:
    return NOTHING if value is None else f"{value / scale:,.{digits}f}"


def _cell(text: str) -> str:
    """A name must neither end its cell nor become a tag."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
