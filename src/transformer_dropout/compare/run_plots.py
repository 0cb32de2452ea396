"""The figures of one run, as SVG text: what it measured, its rates as they were, what its masks keep."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..runs.task import Metric
from ..schedule_data import schedule_from_data
from .metrics import value_unit
from .records import Run, number
from .svg import ink, legend, styles, svg

Line = list[tuple[float, float]]


def metric_figure(run: Run, metric: Metric) -> str | None:
    """Return one metric over the steps, on training and validation data."""
    lines = {
        name: line
        for use, name in (("train", "training"), ("val", "validation"))
        if (line := _line(run, f"{use}_{metric.name}"))
    }
    unit = value_unit(metric, run.task.item)
    label = f"{metric.name}, {unit}" if unit not in ("", "%") else metric.name
    return _figure(
        f"{metric.name[:1].upper()}{metric.name[1:]} over the steps",
        {label: lines},
        share=metric.unit == "share",
    )


def rate_figure(run: Run) -> str | None:
    """Return the rates by place, and the learning rate, over the steps."""
    rates = _by_place(run, "rate_by_site") or planned_rates(run)
    panels = {"rate of dropping": rates, "learning rate": {"lr": _line(run, "lr")}}
    return _figure(
        "Rates as they were", {name: lines for name, lines in panels.items() if any(lines.values())}
    )


def keep_figure(run: Run) -> str | None:
    """Return the fraction that each layer's masks keep over the steps, in training and in evaluation."""
    panels = {
        "kept in training": _by_place(run, "keep_by_site"),
        "kept in evaluation": _by_place(run, "keep_eval_by_site"),
    }
    return _figure(
        "What the masks keep, by layer", {n: lines for n, lines in panels.items() if lines}, share=True
    )


def planned_rates(run: Run) -> dict[str, Line]:
    """Return the rates that the recipe plans at each evaluation, for records that do not hold them.

    A rule whose rate changes with depth is given by its least and its greatest.
    """
    steps = [row["step"] for row in run.metrics]
    last = number(run.training, "steps") or (steps[-1] if steps else 0)
    found: dict[str, Line] = {}
    for rule in run.recipe:
        if rule.get("p") is None:
            continue
        p = schedule_from_data(rule["p"], "p")
        name = f"{rule.get('layer', 'layer')}, {rule.get('select', 'all')}"
        depth = schedule_from_data(rule.get("depth", 1.0), "depth").bounds()
        for factor in dict.fromkeys(depth):
            label = name if len(set(depth)) == 1 else f"{name}, depth factor {factor:g}"
            found[label] = [(step, factor * p(min(1.0, step / max(1.0, last)))) for step in steps]
    return found


def _line(run: Run, key: str) -> Line:
    found = [(row["step"], number(row, key)) for row in run.metrics]
    return [(step, value) for step, value in found if value is not None]


def _by_place(run: Run, key: str) -> dict[str, Line]:
    found: dict[str, Line] = {}
    for row in run.metrics:
        places = row.get(key)
        for place in places if isinstance(places, Mapping) else ():
            value = number(places, place)  # type: ignore[arg-type]
            if value is not None:
                found.setdefault(place, []).append((row["step"], value))
    return found


def _figure(title: str, panels: Mapping[str, Mapping[str, Line]], *, share: bool = False) -> str | None:
    if not any(line for lines in panels.values() for line in lines.values()):
        return None
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    looks = styles(names, names[0])
    with ink():
        figure = Figure(figsize=(10.6, 3.6), layout="constrained")
        grid: Sequence[Axes] = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (label, lines) in zip(grid, panels.items(), strict=True):
            for name, line in lines.items():
                marker = "o" if len(line) == 1 else None
                axes.plot(
                    *zip(*line, strict=True),
                    color=looks[name].colour,
                    linestyle=looks[name].line,
                    marker=marker,
                )
            axes.set_ylabel(label)
            axes.set_xlabel("step")
            if share:
                axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        legend(figure, looks)
        return svg(figure, title)
