"""A search as a page: the curve over each setting, the expected best, and what was chosen."""

import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ...runs.files import write_atomically, write_json
from ..table import Table
from .results import Found, curve, expected_best
from .space import Range

COUNTS = (1, 2, 4, 8, 16, 32, 64)
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: 0.3rem 0.7rem; border-bottom: 1px solid #8884; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1.5rem 0; } figure svg { width: 100%; height: auto; background: #fff; }
"""


def tuning_table(found: Sequence[Found]) -> Table:
    """Return a row for each method: its best value, the settings of it, and how the trials ended."""
    rows = tuple(
        (
            one.method.arm.name,
            str(len(one.tried)),
            str(one.pruned),
            str(one.failed),
            f"{one.best.value:.4f}",
            ", ".join(f"{key} {value_text(value)}" for key, value in one.best.values.items()),
        )
        for one in found
    )
    return Table(columns=("method", "trials", "pruned", "failed", "best", "settings of the best"), rows=rows)


def budget_table(found: Sequence[Found]) -> Table:
    """Return the expected best of so many trials, a row for each method."""
    counts = [count for count in COUNTS if count <= max(len(one.tried) for one in found)]
    rows = []
    for one in found:
        values = [trial.value for trial in one.tried]
        rows.append((one.method.arm.name, *(f"{expected_best(values, count):.4f}" for count in counts)))
    return Table(columns=("method", *(f"of {count}" for count in counts)), rows=tuple(rows))


def write_page(found: Sequence[Found], out: Path, about: Mapping[str, Any], next_step: str) -> Path:
    """Write ``tuning.json``, ``tuning.md`` and ``tuning.html``; return the page.

    Args:
        found: what was found, by method.
        out: the folder of the search.
        about: the command, the budget and the metric's name.
        next_step: the command that compares what was chosen on fresh seeds.
    """
    best, budget = tuning_table(found), budget_table(found)
    write_json(out / "tuning.json", {**about, "methods": [plain(one) for one in found]})
    text = (
        f"{best.markdown()}\nExpected best of so many trials:\n\n{budget.markdown()}\n{explanation(about)}\n"
    )
    write_atomically(out / "tuning.md", text + f"\n    {next_step}\n")
    figures = "".join(figure(one, about["metric"]) for one in found)
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Tuning</title><style>{STYLE}</style><h1>What was found</h1>{html(best)}"
        f"<h2>Expected best of so many trials</h2>{html(budget)}<p>{escape(explanation(about))}</p>"
        f"<pre>{escape(next_step)}</pre><h2>Over each setting</h2>{figures}</html>"
    )
    write_atomically(out / "tuning.html", page)
    return out / "tuning.html"


def explanation(about: Mapping[str, Any]) -> str:
    """Return what a reader of the page has to know."""
    folds = f", each the mean of {about['folds']} folds" if about["folds"] > 1 else ""
    return (
        f"Values are {about['metric']} at the last step on validation{folds}; less is better. Every method "
        f"had {about['trials']} trials, {about['quasi_random']} spread evenly, then Optuna's TPE. The best "
        "of many trials is lower than its settings deserve, so compare what was chosen on fresh seeds before "
        "you believe it. Bands are 95 % bootstrap intervals of the smoothed mean."
    )


def plain(one: Found) -> dict[str, Any]:
    """Return one method's trials as plain data."""
    trials = [{"number": t.number, "settings": t.values, "value": t.value} for t in one.tried]
    return {"name": one.method.arm.name, "pruned": one.pruned, "failed": one.failed, "trials": trials}


def figure(one: Found, metric: str) -> str:
    """Return the curves of one method over its numbers, as a figure of the page."""
    searched = [(k, s) for k, s in one.method.settings.items() if isinstance(s, Range)]
    if not searched or len(one.tried) < 3:
        return ""
    from matplotlib import rc_context

    # The same trials give the same page, in which "$" in a name is no formula.
    with rc_context({"svg.hashsalt": one.method.arm.name, "text.parse_math": False}):
        svg = drawn(one, searched, metric)
    caption = escape(f"{one.method.arm.name}: each point is a trial.")
    return f"<figure>{svg[svg.index('<svg') :]}<figcaption>{caption}</figcaption></figure>"


def drawn(one: Found, searched: list[tuple[str, Range]], metric: str) -> str:
    """Return the curves as SVG text."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(4.2 * len(searched), 3.2), layout="constrained")
    for place, (key, search) in enumerate(searched, start=1):
        axes = drawing.add_subplot(1, len(searched), place)
        line = curve(one.tried, key, search)
        axes.fill_between(line.at, line.low, line.high, alpha=0.25, color="#0072B2", linewidth=0)
        axes.plot(line.at, line.mean, color="#0072B2")
        axes.plot([t.values[key] for t in one.tried], [t.value for t in one.tried], "o", color="#333", ms=3)
        axes.set_xscale("log" if search.log else "linear")
        axes.set_xlabel(key)
        axes.set_ylabel(f"{metric}, {one.method.arm.name}" if place == 1 else "")
    text = io.StringIO()
    drawing.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def html(table: Table) -> str:
    """Return a table as HTML."""
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def value_text(value: Any) -> str:
    """Return a setting's value as text."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
