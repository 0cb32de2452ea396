"""The figures of a report, as SVG text that takes its ink from the page and so suits light and dark."""

import io
import re
import textwrap
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter
from matplotlib.transforms import ScaledTranslation

from .records import Comparison, Run, number
from .statistics import Difference, difference_text, p_text
from .table import cost_of, result_estimate, unit
from .verdicts import Judgement

Dash = tuple[float, tuple[float, ...]]  # offset, then lengths of line and gap in points; no lengths: solid

# Okabe and Ito's colours, told apart by colour-blind readers on white and on dark; without yellow and black.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_LINES: tuple[Dash, ...] = ((0, ()), (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)))
_MARKERS = ("o", "s", "^", "D")
_MOST_BANDS = 6  # more bands on top of each other are mud
_INK = "#010203"  # stands for the page's text colour until the figure is text
_KIND_COLOURS = {"better": "#0072B2", "worse": "#D55E00"}


@dataclass(frozen=True, kw_only=True)
class Style:
    """How one arm is drawn in every figure of a page."""

    colour: str
    line: Dash
    marker: str


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A metric over training: mean and range over seeds at the steps all of them evaluated."""

    passes: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def styles(arms: Sequence[str], reference: str) -> dict[str, Style]:
    """Return a style per arm: ink for the reference; colours, then dashes and markers, for 24 others."""
    others = [arm for arm in arms if arm != reference]
    found = {reference: Style(colour=_INK, line=_LINES[0], marker="*")}
    for at, arm in enumerate(others):
        turn = (at // len(_COLOURS)) % len(_LINES)
        found[arm] = Style(colour=_COLOURS[at % len(_COLOURS)], line=_LINES[turn], marker=_MARKERS[turn])
    return found


def curve(runs: Sequence[Run], key: str) -> Curve | None:
    """Return a metric's mean and range over runs against passes over the data; None without a common step."""
    tables = [{row["step"]: row for row in run.metrics if number(row, key) is not None} for run in runs]
    steps = sorted(set.intersection(*map(set, tables))) if tables else []
    if not steps:
        return None
    values = np.array([[table[step][key] for step in steps] for table in tables])
    passes = np.array([number(tables[0][step], "epochs") or 0.0 for step in steps])
    return Curve(passes=passes, mean=values.mean(0), low=values.min(0), high=values.max(0))


def loss_figure(comparison: Comparison, judgement: Judgement) -> str | None:
    """Return training and validation loss against passes over the data, one panel each on one scale."""
    drawn = _curves(comparison, ("train_loss", "val_loss"))
    if not drawn:
        return None
    looks = styles(comparison.arms, judgement.reference.name)
    order = sorted(drawn, key=lambda arm: drawn[arm]["val_loss"].mean[-1])
    title = (
        f"Validation loss ends lowest with {order[0]}, highest with {order[-1]}" if order[1:] else order[0]
    )
    with _ink():
        figure = Figure(figsize=(10.6, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, key, name in ((left, "train_loss", "training"), (right, "val_loss", "validation")):
            for arm in reversed(order):
                _line(axes, drawn[arm][key], looks[arm], band=len(order) <= _MOST_BANDS)
            axes.set_title(f"{name} loss")
            axes.set_xlabel("passes over the training data")
        left.set_ylabel(f"loss, nats a {comparison.item}")
        left.set_ylim(*_loss_limits([item for found in drawn.values() for item in found.values()]))
        _legend(figure, {arm: looks[arm] for arm in order}, heading="lowest validation loss first")
        return _svg(figure, title)


def keep_figure(comparison: Comparison, judgement: Judgement) -> str | None:
    """Return the kept fraction over training, sampled and as evaluated; None if no arm has learned masks."""
    drawn = {
        arm: found for arm, found in _curves(comparison, ("keep", "keep_eval"), every=False).items() if found
    }
    if not drawn:
        return None
    looks = styles(comparison.arms, judgement.reference.name)
    ends = {arm: 100 * next(iter(found.values())).mean[-1] for arm, found in drawn.items()}
    least, most = min(ends, key=ends.__getitem__), max(ends, key=ends.__getitem__)
    title = f"Masks end up keeping {ends[least]:.0f} % with {least}"
    title += f", {ends[most]:.0f} % with {most}" if most != least else ""
    with _ink():
        figure = Figure(figsize=(10.6, 3.8), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for axes, key, name in zip(
            panels, ("keep", "keep_eval"), ("sampled in training", "as used in evaluation"), strict=True
        ):
            for arm, found in drawn.items():
                if key in found:
                    _line(axes, found[key], looks[arm], band=len(drawn) <= _MOST_BANDS)
            axes.set_title(name)
            axes.set_xlabel("passes over the training data")
        panels[0].set_ylim(0.0, 1.02)
        panels[0].set_ylabel("fraction kept")
        panels[0].yaxis.set_major_formatter(PercentFormatter(1.0))
        _legend(figure, {arm: looks[arm] for arm in drawn})
        return _svg(figure, title)


def forest_figure(comparison: Comparison, judgement: Judgement) -> str | None:
    """Return each arm's difference to the reference with its interval, best on top; None without any."""
    found = {arm: v.difference for arm, v in judgement.verdicts.items() if v.difference is not None}
    if not found:
        return None
    order = sorted(found, key=lambda arm: found[arm].estimate.mean, reverse=True)
    kinds = {arm: judgement.verdicts[arm].kind for arm in order}
    better, worse = (list(kinds.values()).count(kind) for kind in ("better", "worse"))
    title = (
        f"Of {len(order)} arms, {better} shown better and {worse} shown worse than {judgement.reference.name}"
    )
    if not better and not worse:
        title = f"No arm is shown to differ from {judgement.reference.name}"
    with _ink():
        figure = Figure(figsize=(10.6, 1.5 + 0.34 * len(order)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0.0, color=_INK, linewidth=1.2)
        for row, arm in enumerate(order):
            _forest_row(axes, row, found[arm], kinds[arm])
        axes.set_yticks(range(len(order)), [_short(arm) for arm in order])
        axes.set_ylim(-0.6, len(order) - 0.4)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(
            f"validation loss minus that of {_short(judgement.reference.name)}, nats a {comparison.item}"
        )
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, -0.15 * high), max(high, -0.15 * low))
        axes.set_title("← better", loc="left", color=_KIND_COLOURS["better"])
        axes.set_title("worse →", loc="right", color=_KIND_COLOURS["worse"])
        return _svg(figure, title)


def cost_figure(comparison: Comparison, judgement: Judgement) -> str | None:
    """Return validation loss against training FLOPs and wall-clock; None if no run tells its cost."""
    costs = {arm: cost_of(comparison, arm) for arm in comparison.arms if comparison.usable(arm)}
    prefix, scale = unit([cost.training_flops for cost in costs.values()])
    wall = {arm: cost.wall_seconds for arm, cost in costs.items() if cost.wall_seconds is not None}
    flops = {arm: c.training_flops / scale for arm, c in costs.items() if c.training_flops is not None}
    panels = [(f"training {prefix}FLOP a run", flops), ("wall-clock seconds a run", wall)]
    panels = [(name, values) for name, values in panels if values and max(values.values()) > 0]
    if not panels:
        return None
    looks = styles(comparison.arms, judgement.reference.name)
    with _ink():
        figure = Figure(figsize=(10.6, 4.0), layout="constrained")
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (name, values) in zip(grid, panels, strict=True):
            for arm, shift in _side_by_side(values).items():
                _cost_point(axes, comparison, arm, values[arm], shift, looks[arm])
            axes.set_xlim(0.0, 1.12 * max(values.values()))
            axes.set_xlabel(name)
        grid[0].set_ylabel(f"validation loss, nats a {comparison.item}")
        _legend(figure, {arm: looks[arm] for arm in costs}, marker=True)
        return _svg(figure, "Validation loss against what training cost: lower and further left is better")


def _curves(
    comparison: Comparison, keys: tuple[str, ...], *, every: bool = True
) -> dict[str, dict[str, Curve]]:
    found = {}
    for arm in comparison.arms:
        mine = {key: line for key in keys if (line := curve(comparison.usable(arm), key)) is not None}
        if len(mine) == len(keys) or not every:
            found[arm] = mine
    return found


def _line(axes: Axes, line: Curve, look: Style, *, band: bool) -> None:
    if band:
        axes.fill_between(line.passes, line.low, line.high, color=look.colour, alpha=0.14, linewidth=0)
    marker = look.marker if len(line.passes) == 1 else None  # a line of one point would not be seen
    axes.plot(line.passes, line.mean, color=look.colour, linestyle=look.line, marker=marker)


def _loss_limits(lines: Sequence[Curve]) -> tuple[float, float]:
    """Leave the first fall from the untrained loss out of the picture: it would flatten all that follows."""
    late = [line.high[line.passes >= 0.25 * line.passes[-1]].max() for line in lines]
    low, high = min(line.low.min() for line in lines), max(late)
    margin = 0.04 * (high - low) or 0.1
    return low - margin, high + margin


def _forest_row(axes: Axes, row: int, difference: Difference, kind: str) -> None:
    estimate = difference.estimate
    colour = _KIND_COLOURS.get(kind, _INK)
    if estimate.low is not None and estimate.high is not None:
        axes.plot([estimate.low, estimate.high], [row, row], color=colour, linewidth=2)
    shown = kind in _KIND_COLOURS
    axes.plot(
        estimate.mean, row, "o", color=colour, markerfacecolor=colour if shown else "none", markersize=6
    )
    note = f"Holm {p_text(difference.holm_p)}" if difference.holm_p is not None else kind
    for text, points in ((difference_text(estimate), 12), (note, 165)):
        place = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "va": "center"}
        axes.annotate(text, (1.0, row), xytext=(points, 0), annotation_clip=False, **place)


def _cost_point(axes: Axes, comparison: Comparison, arm: str, cost: float, shift: float, look: Style) -> None:
    estimate = result_estimate(comparison, arm, "val_loss")
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


def _legend(
    figure: Figure, looks: dict[str, Style], *, marker: bool = False, heading: str | None = None
) -> Legend:
    lines = [
        Line2D(
            [],
            [],
            color=look.colour,
            linestyle="none" if marker else look.line,
            marker=look.marker if marker else "",
        )
        for look in looks.values()
    ]
    return figure.legend(lines, [_short(arm) for arm in looks], loc="outside right center", title=heading)


def _short(arm: str) -> str:
    # The space keeps a name with a leading underscore in the legend, which leaves such names out.
    return textwrap.shorten(f"{arm:.40}", 26, placeholder="…") if not arm.startswith("_") else f" {arm:.25}"


@contextmanager
def _ink() -> Generator[None, None, None]:
    """Draw in the page's colour, with text as text, and without reading ``$`` in a name as a formula."""
    ink = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    settings = dict.fromkeys(ink, _INK) | {
        "svg.fonttype": "none",
        "text.parse_math": False,
        "font.size": 9.5,
        "axes.titlesize": "medium",
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.alpha": 0.13,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "lines.linewidth": 1.8,
        "legend.frameon": False,
        "legend.title_fontsize": "small",
        "legend.handlelength": 2.6,
    }
    with mpl.rc_context(settings), warnings.catch_warnings():
        # The page's fonts draw the text; matplotlib's own font only measures it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _svg(figure: Figure, title: str) -> str:
    figure.suptitle(textwrap.fill(title, 96), x=0.01, ha="left", fontsize="large", fontweight="bold")
    # Names of clip paths must differ between the figures of one page.
    mpl.rcParams["svg.hashsalt"] = title
    page = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(page, format="svg", transparent=True, metadata=nothing)
    text = page.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(
        r'<g id="[^"]*">', "<g>", text
    )  # the same names in every figure, and nothing refers to them
    # Without width and height the figure takes the page's width.
    size = re.compile(r' (?:width|height)="[\d.]+pt"')
    head, rest = text.split(">", 1)
    return f'{size.sub("", head)} role="img" aria-label="{escape(title)}">{rest}'
