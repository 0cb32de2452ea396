"""The tables of a comparison: the metric that decides, all others, and what it cost."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from ..runs.task import Metric
from .metrics import difference_unit, factor, in_shown_unit, value_unit
from .moderation import MOST_SEEDS
from .records import Comparison, Run, number
from .statistics import Difference, Estimate, decimals, difference_text, mean_interval
from .verdicts import Judgement, differences

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
        return "\n".join("| " + " | ".join(map(escaped, line)) + " |" for line in lines) + "\n"

    def without_empty(self) -> "Table":
        """Return the table without columns that have nothing in any row."""
        kept = [0] + [
            at for at in range(1, len(self.columns)) if any(row[at] != NOTHING for row in self.rows)
        ]
        return Table(
            columns=tuple(self.columns[at] for at in kept),
            rows=tuple(tuple(row[at] for at in kept) for row in self.rows),
        )


@dataclass(frozen=True, kw_only=True)
class ArmCost:
    """What one arm costs, as means over its finished runs; None where no run says.

    Args:
        parameters: trainable parameters of model and regularizer.
        steps: optimizer steps per run.
        training_flops: floating-point operations a run spent on training.
        wall_seconds: seconds a run took, evaluation included.
        step_seconds: seconds per step, the median over a run.
        peak_memory_bytes: the largest peak of any run.
        inference_flops: floating-point operations for one item at inference.
    """

    parameters: float | None
    steps: float | None
    training_flops: float | None
    wall_seconds: float | None
    step_seconds: float | None
    peak_memory_bytes: float | None
    inference_flops: float | None


def cost_of(comparison: Comparison, arm: str) -> ArmCost:
    """Return the cost of one arm over its finished runs."""
    runs = comparison.usable(arm)
    peaks = [
        peak for run in runs for row in run.metrics if (peak := number(row, "peak_memory_bytes")) is not None
    ]
    return ArmCost(
        parameters=_mean(map(_size, runs)),
        steps=_mean(_last(run, "step") for run in runs),
        training_flops=_mean(map(_training_flops, runs)),
        wall_seconds=_mean(number(run.section("result"), "wall_seconds") for run in runs),
        step_seconds=_mean(map(_step_seconds, runs)),
        peak_memory_bytes=max(peaks, default=None),
        inference_flops=_mean(
            number(run.section("flops"), f"inference_per_{run.task.counted}") for run in runs
        ),
    )


def result_estimate(comparison: Comparison, arm: str, key: str) -> Estimate | None:
    """Return mean and interval over seeds of one number of the result, such as ``val_loss``, or None."""
    values = list(comparison.values(arm, key).values())
    return mean_interval(values) if values else None


def result_table(comparison: Comparison, judgement: Judgement) -> Table:
    """Return one row per arm: the metric that decides, at the end and at the best, and the verdict."""
    metric, name = comparison.metric, comparison.metric.name
    rows = []
    for arm in comparison.arms:
        verdict = judgement.verdicts[arm]
        best = list(comparison.best_values(arm).values())
        rows.append(
            (
                arm,
                _seeds(comparison, arm),
                _value(metric, result_estimate(comparison, arm, f"train_{name}"), with_interval=False),
                _value(metric, result_estimate(comparison, arm, comparison.task.value)),
                _difference(metric, verdict.difference),
                verdict.kind,
                _value(metric, mean_interval(best) if best else None, with_interval=False),
                _difference(metric, verdict.at_best),
                _more(verdict.more_seeds),
                _keep(comparison, arm),
            )
        )
    unit, gap = _heading(value_unit(metric, "")), _heading(difference_unit(metric))
    shown = NOTHING if judgement.to_show is None else f"{factor(metric) * judgement.to_show:g}{gap}"
    columns = (
        "arm",
        "seeds",
        f"train {name}{unit}",
        f"val {name}{unit} ± 95 %",
        f"difference{gap} [95 %]",
        "verdict",
        f"best val {name}{unit}",
        f"difference at best{gap} [95 %]",
        f"more seeds to show {shown}",
        "keep % / evaluated",
    )
    return Table(columns=columns, rows=tuple(rows)).without_empty()


def metrics_table(comparison: Comparison, judgement: Judgement) -> Table | None:
    """Return one row per arm: every metric on the test split, and those on validation that do not decide.

    Each difference stands beside its metric, tested over all arms. None where there is no such number.
    """
    reference, columns, cells = judgement.reference.name, ["arm"], []
    for use, split in (("test", "test"), ("val", "val")):
        for metric in comparison.task.metrics:
            key = f"{use}_{metric.name}"
            estimates = {arm: result_estimate(comparison, arm, key) for arm in comparison.arms}
            if key == comparison.task.value or not any(estimates.values()):
                continue
            found = differences(comparison, reference, partial(comparison.values, key=key))
            columns += [
                f"{split} {metric.name}{_heading(value_unit(metric, ''))} ± 95 %",
                f"difference{_heading(difference_unit(metric))} [95 %]",
            ]
            cells.append([_value(metric, estimate) for estimate in estimates.values()])
            cells.append([_difference(metric, found.get(arm)) for arm in comparison.arms])
    if not cells:
        return None
    return Table(columns=tuple(columns), rows=tuple(zip(comparison.arms, *cells, strict=True)))


def cost_table(comparison: Comparison) -> Table:
    """Return one row per arm: the metric that decides beside training cost three ways, size and inference."""
    metric = comparison.metric
    costs = {arm: cost_of(comparison, arm) for arm in comparison.arms}
    train_unit, train_scale = unit([cost.training_flops for cost in costs.values()])
    size_unit, size_scale = unit([cost.parameters for cost in costs.values()])
    infer_unit, infer_scale = unit([cost.inference_flops for cost in costs.values()])
    rows = tuple(
        (
            arm,
            _value(metric, result_estimate(comparison, arm, comparison.task.value), with_interval=False),
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
        f"val {metric.name}{_heading(value_unit(metric, ''))}",
        "steps",
        f"training, {train_unit}FLOP",
        "run, s",
        "step, ms",
        "peak memory, MB",
        f"{_size_words(comparison)}, {size_unit}".rstrip(", "),
        f"inference, {infer_unit}FLOP/{_flops_item(comparison) or 'item'}",
    )
    return Table(columns=columns, rows=rows).without_empty()


def detail_table(comparison: Comparison, judgement: Judgement) -> Table:
    """Return every p value: of the moderated test, adjusted or not, and of the sign-flip test."""
    rows = []
    metric = comparison.metric
    for arm, verdict in judgement.verdicts.items():
        difference = verdict.difference
        if difference is None:
            continue
        each = ", ".join(f"{factor(metric) * value:+.4f}" for value in difference.differences)
        ps = (difference.p, difference.adjusted_p, difference.sign_flip_p, difference.sign_flip_floor)
        df = NOTHING if difference.df is None else f"{difference.df:.1f}"
        rows.append(
            (arm, str(difference.estimate.n), each, df, *(NOTHING if p is None else f"{p:.3g}" for p in ps))
        )
    columns = (
        "arm",
        "pairs",
        f"difference at each seed{_heading(difference_unit(metric))}",
        "degrees of freedom",
        "p",
        "adjusted p",
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


def _value(metric: Metric, estimate: Estimate | None, *, with_interval: bool = True) -> str:
    if estimate is None:
        return NOTHING
    shown = in_shown_unit(metric, estimate)
    half = shown.half_width
    if half is None or not with_interval:
        return f"{shown.mean:.3f}"
    digits = decimals(half)
    return f"{shown.mean:.{digits}f} ± {half:.{digits}f}"


def _difference(metric: Metric, difference: Difference | None) -> str:
    return NOTHING if difference is None else difference_text(in_shown_unit(metric, difference.estimate))


def _more(seeds: int | float | None) -> str:
    if seeds is None:
        return NOTHING
    return f"> {MOST_SEEDS:,}" if math.isinf(seeds) else str(seeds)


def _heading(unit: str) -> str:
    """Units of losses are told below the table, those of shares in its head."""
    return f" {unit}" if unit in ("%", "points") else ""


def _keep(comparison: Comparison, arm: str) -> str:
    found = [result_estimate(comparison, arm, key) for key in ("keep", "keep_eval")]
    if not any(found):
        return NOTHING
    return " / ".join(NOTHING if estimate is None else f"{100 * estimate.mean:.1f}" for estimate in found)


def _training_flops(run: Run) -> float | None:
    item = run.task.counted
    each, items = number(run.section("flops"), f"training_per_{item}"), _last(run, f"{item}s")
    return None if each is None or items is None else each * items


def _flops_item(comparison: Comparison) -> str:
    """What FLOPs are counted by; older records of sentences count them by the token."""
    task = comparison.task
    return "byte" if (task.counted, task.item) == ("token", "byte") else task.counted


def _step_seconds(run: Run) -> float | None:
    """The median is not moved by the first steps, which compile and warm up."""
    known = [seconds for row in run.metrics if (seconds := number(row, "step_seconds")) is not None]
    return statistics.median(known) if known else None


def _last(run: Run, key: str) -> float | None:
    return number(run.metrics[-1], key) if run.metrics else None


def _size(run: Run) -> float | None:
    """Return the parameters of a run, as papers count them; the first records do not tell positions apart."""
    parameters = run.section("parameters")
    return number(parameters, "without_positional" if "without_positional" in parameters else "total")


def _size_words(comparison: Comparison) -> str:
    """Return what the parameters that are shown are."""
    sizes = [run.section("parameters") for run in comparison.runs]
    positions = any(size.get("without_positional", size.get("total")) != size.get("total") for size in sizes)
    return "parameters without positions" if positions else "parameters"


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _scaled(value: float | None, scale: float, digits: int) -> str:
    return NOTHING if value is None else f"{value / scale:,.{digits}f}"


def escaped(text: str) -> str:
    """Return text for Markdown in which a name neither ends its cell nor becomes a tag, link or emphasis."""
    shown = " ".join(text.split())
    for mark in ("\\", "|", "*", "`"):
        shown = shown.replace(mark, f"\\{mark}")
    return shown.replace("<", "&lt;").replace("](", "]\\(")
