"""The figures of a comparison, as SVG text."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import ScaledTranslation

from ..runs.task import Metric
from .metrics import difference_unit, in_shown_unit, value_unit
from .records import Comparison, Run, number
from .statistics import Difference, difference_text, p_text
from .svg import INK, Style, ink, legend, short, styles, svg
from .table import cost_of, result_estimate, unit
from .verdicts import SHOWN, Judgement

_MOST_BANDS = 6  # more bands on top of each other are mud
_KIND_COLOURS = {"better": "#0072B2", "worse": "#D55E00"}


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A metric over training: mean and range over seeds at the steps all of them evaluated.

    ``passes`` are passes over the data, or steps where the runs do not count those.
    """

    passes: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def curve(runs: Sequence[Run], key: str) -> Curve | None:
    """Return a metric's mean and range over runs against passes over the data; None without a common step."""
    tables = [{row["step"]: row for row in run.metrics if number(row, key) is not None} for run in runs]
    steps = sorted(set.intersection(*map(set, tables))) if tables else []
    if not steps:
        return None
    values = np.array([[table[step][key] for step in steps] for table in tables])
    epochs = [number(tables[0][step], "epochs") for step in steps]
    passes = np.array(
        [step if at is None else at for step, at in zip(steps, epochs, strict=True)], dtype=float
    )
    return Curve(passes=passes, mean=values.mean(0), low=values.min(0), high=values.max(0))


def metric_figure(comparison: Comparison, judgement: Judgement) -> str | None:
    """Return the metric that decides against passes over the data: training and validation, on one scale."""
    metric = comparison.metric
    train, val = f"train_{metric.name}", comparison.task.value
    drawn = {arm: found for arm, found in _curves(comparison, (train, val)).items() if val in found}
    if not drawn:
        return None
    looks = styles(comparison.arms, judgement.reference.name)
    order = sorted(drawn, key=lambda arm: drawn[arm][val].mean[-1])
    low, high = order[0], order[-1]
    ends = f"ends lowest with {low}, highest with {high}" if order[1:] else f"of {low}"
    title = f"Validation {metric.name} {ends}"
    with ink():
        figure = Figure(figsize=(10.6, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, key, name in ((left, train, "training"), (right, val, "validation")):
            for arm in reversed(order):
                if key in drawn[arm]:
                    _line(axes, drawn[arm][key], looks[arm], band=len(order) <= _MOST_BANDS)
            axes.set_title(f"{name} {metric.name}")
            axes.set_xlabel(_passes_label(comparison))
        left.set_ylabel(_label(comparison))
        left.set_ylim(*_limits(metric, [item for found in drawn.values() for item in found.values()]))
        if metric.unit == "share":
            left.yaxis.set_major_formatter(PercentFormatter(1.0))
        legend(figure, {arm: looks[arm] for arm in order}, heading=f"lowest validation {metric.name} first")
        return svg(figure, title)


def keep_figure(comparison: Comparison, judgement: Judgement) -> str | None:
    """Return the kept fraction over training, sampled and as evaluated; None if no arm has learned masks."""
    drawn = {arm: found for arm, found in _curves(comparison, ("keep", "keep_eval")).items() if found}
    if not drawn:
        return None
    looks = styles(comparison.arms, judgement.reference.name)
    ends = {arm: 100 * next(iter(found.values())).mean[-1] for arm, found in drawn.items()}
    least, most = min(ends, key=ends.__getitem__), max(ends, key=ends.__getitem__)
    title = f"Masks end up keeping {ends[least]:.0f} % with {least}"
    title += f", {ends[most]:.0f} % with {most}" if most != least else ""
    with ink():
        figure = Figure(figsize=(10.6, 3.8), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, key, name in zip(
            panels, ("keep", "keep_eval"), ("sampled in training", "as used in evaluation"), strict=True
        ):
            for arm, found in drawn.items():
                if key in found:
                    _line(axes, found[key], looks[arm], band=len(drawn) <= _MOST_BANDS)
            axes.set_title(name)
            axes.set_xlabel(_passes_label(comparison))
        panels[0].set_ylim(0.0, 1.02)
        panels[0].set_ylabel("fraction kept")
        panels[0].yaxis.set_major_formatter(PercentFormatter(1.0))
        legend(figure, {arm: looks[arm] for arm in drawn})
        return svg(figure, title)


def forest_figure(comparison: Comparison, judgement: Judgement) -> str | None:
    """Return each arm's difference to the reference with its interval, best on top; None without any."""
    found = {arm: v.difference for arm, v in judgement.verdicts.items() if v.difference is not None}
    if not found:
        return None
    metric = comparison.metric
    lower = metric.better == "lower"
    order = sorted(found, key=lambda arm: found[arm].estimate.mean, reverse=lower)
    kinds = {arm: judgement.verdicts[arm].kind for arm in order}
    better, worse = (list(kinds.values()).count(kind) for kind in ("better", "worse"))
    title = (
        f"Of {len(order)} arms, {better} shown better and {worse} shown worse than {judgement.reference.name}"
    )
    if not better and not worse:
        title = f"No arm is shown to differ from {judgement.reference.name}"
    with ink():
        figure = Figure(figsize=(10.6, 1.5 + 0.34 * len(order)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0.0, color=INK, linewidth=1.2)
        for row, arm in enumerate(order):
            _forest_row(axes, row, comparison.metric, found[arm], kinds[arm])
        axes.set_yticks(range(len(order)), [short(arm) for arm in order])
        axes.set_ylim(-0.6, len(order) - 0.4)
        axes.grid(axis="y", visible=False)
        unit_of = difference_unit(metric)
        minus = f"validation {metric.name} minus that of {short(judgement.reference.name)}"
        axes.set_xlabel(f"{minus}, {unit_of}" if unit_of else minus)
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, -0.15 * high), max(high, -0.15 * low))
        sides = ("better", "worse") if lower else ("worse", "better")
        axes.set_title(f"← {sides[0]}", loc="left", color=_KIND_COLOURS[sides[0]])
        axes.set_title(f"{sides[1]} →", loc="right", color=_KIND_COLOURS[sides[1]])
        return svg(figure, title)


def cost_figure(comparison: Comparison, judgement: Judgement) -> str | None:
    """Return the metric that decides against training FLOPs and wall-clock; None if no run tells its cost."""
    costs = {arm: cost_of(comparison, arm) for arm in comparison.arms if comparison.usable(arm)}
    prefix, scale = unit([cost.training_flops for cost in costs.values()])
    wall = {arm: cost.wall_seconds for arm, cost in costs.items() if cost.wall_seconds is not None}
    flops = {arm: c.training_flops / scale for arm, c in costs.items() if c.training_flops is not None}
    panels = [(f"training {prefix}FLOP per run", flops), ("wall-clock seconds per run", wall)]
    panels = [(name, values) for name, values in panels if values and max(values.values()) > 0]
    if not panels:
        return None
    looks = styles(comparison.arms, judgement.reference.name)
    with ink():
        figure = Figure(figsize=(10.6, 4.0), layout="constrained")
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (name, values) in zip(grid, panels, strict=True):
            for arm, shift in _side_by_side(values).items():
                _cost_point(axes, comparison, arm, values[arm], shift, looks[arm])
            axes.set_xlim(0.0, 1.12 * max(values.values()))
            axes.set_xlabel(name)
        metric = comparison.metric
        grid[0].set_ylabel(f"validation {_label(comparison)}")
        if metric.unit == "share":
            grid[0].yaxis.set_major_formatter(PercentFormatter(1.0))
        legend(figure, {arm: looks[arm] for arm in costs}, marker=True)
        good = "lower" if metric.better == "lower" else "higher"
        title = f"Validation {metric.name} against what training cost: {good} and further left is better"
        return svg(figure, title)


def _curves(comparison: Comparison, keys: tuple[str, ...]) -> dict[str, dict[str, Curve]]:
    return {
        arm: {key: line for key in keys if (line := curve(comparison.usable(arm), key)) is not None}
        for arm in comparison.arms
    }


def _label(comparison: Comparison) -> str:
    unit_of = value_unit(comparison.metric, comparison.task.item)
    return comparison.metric.name if unit_of in ("", "%") else f"{comparison.metric.name}, {unit_of}"


def _passes_label(comparison: Comparison) -> str:
    return "passes over the training data" if _counts_passes(comparison.runs) else "step"


def _counts_passes(runs: Sequence[Run]) -> bool:
    """Return whether runs say how often they saw their data; a training of the user's own need not."""
    return any(number(row, "epochs") is not None for run in runs for row in run.metrics)


def _line(axes: Axes, line: Curve, look: Style, *, band: bool) -> None:
    if band:
        axes.fill_between(line.passes, line.low, line.high, color=look.colour, alpha=0.14, linewidth=0)
    marker = look.marker if len(line.passes) == 1 else None  # a line of one point would not be seen
    axes.plot(line.passes, line.mean, color=look.colour, linestyle=look.line, marker=marker)


def _limits(metric: Metric, lines: Sequence[Curve]) -> tuple[float, float]:
    """Leave the first quarter's fall or climb out of the picture: it would flatten all that follows."""
    late = [line.passes >= 0.25 * line.passes[-1] for line in lines]
    low, high = min(line.low.min() for line in lines), max(line.high.max() for line in lines)
    if metric.better == "lower":
        high = max(line.high[after].max() for line, after in zip(lines, late, strict=True))
    else:
        low = min(line.low[after].min() for line, after in zip(lines, late, strict=True))
    margin = 0.04 * (high - low) or 0.1
    return low - margin, high + margin


def _forest_row(axes: Axes, row: int, metric: Metric, difference: Difference, kind: str) -> None:
    estimate = in_shown_unit(metric, difference.estimate)
    colour = _KIND_COLOURS.get(kind, INK)
    if estimate.low is not None and estimate.high is not None:
        axes.plot([estimate.low, estimate.high], [row, row], color=colour, linewidth=2)
    shown = kind in SHOWN
    axes.plot(
        estimate.mean, row, "o", color=colour, markerfacecolor=colour if shown else "none", markersize=6
    )
    note = p_text(difference.adjusted_p) if difference.adjusted_p is not None else kind
    for text, points in ((difference_text(estimate), 12), (note, 165)):
        place = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "va": "center"}
        axes.annotate(text, (1.0, row), xytext=(points, 0), annotation_clip=False, **place)


def _cost_point(axes: Axes, comparison: Comparison, arm: str, cost: float, shift: float, look: Style) -> None:
    estimate = result_estimate(comparison, arm, comparison.task.value)
    if estimate is None:
        return
    offset = axes.transData + ScaledTranslation(shift / 72, 0, axes.figure.dpi_scale_trans)
    ends = [estimate.mean if end is None else end for end in (estimate.low, estimate.high)]
    axes.plot([cost, cost], ends, color=look.colour, linewidth=1.4, alpha=0.75, transform=offset)
    size = 10 if look.marker == "*" else 7
    axes.plot(
        [cost], [estimate.mean], look.marker, color=look.colour, markersize=size, transform=offset, zorder=3
    )
    axes.update_datalim([(cost, end) for end in ends])  # matplotlib does not see through the shift
    axes.autoscale_view()


def _side_by_side(costs: dict[str, float]) -> dict[str, float]:
    """Return a shift in points per arm: costs within 3 % of the axis must not hide each other."""
    groups: list[list[str]] = []
    for arm in sorted(costs, key=costs.__getitem__):
        near = groups and costs[arm] - costs[groups[-1][-1]] <= 0.03 * max(costs.values())
        groups[-1].append(arm) if near else groups.append([arm])
    shifts = {}
    for group in groups:
        gap = min(9.0, 45.0 / max(1, len(group) - 1))  # a wide group must not look like a difference in cost
        shifts |= {arm: gap * (at - (len(group) - 1) / 2) for at, arm in enumerate(group)}
    return shifts
