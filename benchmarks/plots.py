"""The figures of a benchmark: each ratio against its target, and cost against growing work."""

import io
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

MET, MISSED, TARGET = "#0072B2", "#D55E00", "#333333"
LOOKS = {
    "reference": ("#D55E00", "s", "--"),
    "LearnedDropout": ("#0072B2", "o", "-"),
    "no dropout": ("#333333", "^", ":"),
    "blocks skipped": ("#0072B2", "o", "-"),
}


def ratios_figure(record: dict[str, Any]) -> str | None:
    """Return a line for each ratio: median and range over rounds, and the target; None without any."""
    rows = [row for row in record["rows"] if "value" in row and row["unit"] == "x"]
    if not rows:
        return None
    figure = Figure(figsize=(9, 1.1 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        colour = MET if row["status"] == "met" else MISSED
        rounds = row["per_round"] or [row["value"]]
        axes.plot([min(rounds), max(rounds)], [place, place], color=colour, linewidth=2)
        axes.plot(row["value"], place, "o" if row["status"] == "met" else "X", color=colour)
        axes.plot(row["target"], place, "|", color=TARGET, markersize=13, markeredgewidth=2)
    axes.set_yticks(range(len(rows)), [f"{row['name']}, {row['path']}" for row in rows], fontsize="small")
    axes.invert_yaxis()
    axes.axvline(1, color="#999999", linewidth=0.8)
    scale(axes.xaxis, axes.set_xscale)
    axes.set_xlabel("ratio: median and range over rounds; | the target; ● met, ✕ missed")
    axes.grid(axis="x", alpha=0.3)
    return svg(figure)


def growth_figure(record: dict[str, Any]) -> str | None:
    """Return time and memory against width, context and keep; None when they were not measured."""
    growth = record.get("growth")
    if not growth:
        return None
    figure = Figure(figsize=(4 * len(growth), 6.5), layout="constrained")
    panels = figure.subplots(2, len(growth), squeeze=False)
    for column, (axis, series) in enumerate(growth.items()):
        for row, (key, unit, divisor) in enumerate(QUANTITIES):
            axes = panels[row][column]
            for side in series["points"][0][key]:
                draw_side(axes, series["points"], key, side, divisor)
            axes.set_xlabel(f"{axis} ({series['about']})" if row else "")
            axes.set_ylabel(unit if column == 0 else "")
            axes.grid(alpha=0.3)
            axes.legend(fontsize="small")
            if series["points"][-1]["at"] > 1:
                scale(axes.xaxis, axes.set_xscale)
                axes.set_yscale("log")
            else:
                axes.set_ylim(bottom=0)
    return svg(figure)


QUANTITIES = (("seconds", "CPU seconds per step", 1.0), ("saved_bytes", "MB saved for backward", 1e6))


def draw_side(axes: Axes, points: list[dict[str, Any]], key: str, side: str, divisor: float) -> None:
    """Draw one side's line."""
    colour, marker, line = LOOKS[side]
    places = [point["at"] for point in points]
    values = [point[key][side] / divisor for point in points]
    axes.plot(places, values, color=colour, marker=marker, linestyle=line, label=side)


def scale(axis: Any, set_scale: Any) -> None:
    """Make an axis logarithmic, with plain numbers."""
    set_scale("log", base=2)
    axis.set_major_formatter(ScalarFormatter())


def svg(figure: Figure) -> str:
    """Return a figure as an SVG file's text, the same bytes for the same figure."""
    with mpl.rc_context({"svg.hashsalt": "transformer-dropout", "svg.fonttype": "path"}):
        page = io.StringIO()
        figure.savefig(page, format="svg", facecolor="white", metadata={"Date": None})
    return page.getvalue()
