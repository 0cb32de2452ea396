"""Writes what one run did: its losses, its rates as they were, what its masks keep by layer over time."""

from pathlib import Path

from markupsafe import Markup

from .facts import check_facts, computer_facts, data_facts
from .metrics import factor, value_unit
from .records import Run, load_run, number
from .report import RELOAD_SECONDS, Figure, page, settings_text, write_all
from .run_plots import keep_figure, metric_figure, rate_figure
from .table import NOTHING, Table
from .verdicts import failure


def write_run_report(folder: Path) -> Path:
    """Write ``report.html`` into a run folder, finished or not; return the page.

    Args:
        folder: a run folder, with its ``run.json``.

    Raises:
        InputError: the folder holds no run, or cannot be written to.
    """
    run = load_run(folder)
    write_all(folder, {"report.html": render_run(run)})
    return folder / "report.html"


def render_run(run: Run) -> str:
    """Return the page of one run: one self-contained HTML text without scripts."""
    metrics = run.task.metrics
    drawn = [
        *((metric_figure(run, metric), "Measured in evaluation mode.") for metric in metrics),
        (rate_figure(run), _rate_caption(run)),
        (keep_figure(run), "Fraction of entries that each layer's masks keep, at each evaluation."),
    ]
    return page(
        "run.html.jinja",
        title=f"{run.name}, seed {run.seed}: {run_sentence(run)}",
        reload=RELOAD_SECONDS if run.status == "running" else None,
        progress=_progress(run),
        warnings=[
            *run.record.get("alarms", ()),
            *([] if run.usable or run.status == "running" else [failure(run)]),
        ],
        results=run_table(run),
        note="At the last step or the restored one, and the best of all evaluations on validation.",
        figures=[Figure(svg=Markup(svg), caption=caption) for svg, caption in drawn if svg is not None],
        facts={
            name: text
            for name, text in {
                "task": run.task.name,
                **data_facts([run]),
                **check_facts([run]),
                **computer_facts([run]),
            }.items()
            if text
        },
        notes=run.record.get("notes") or [],
        settings=settings_text(run),
    )


def run_sentence(run: Run) -> str:
    """Return the run's result, or what it is doing, in a few words."""
    if not run.usable:
        return failure(run)
    metric = run.task.metric
    unit = value_unit(metric, run.task.item)
    value, best = (f"{factor(metric) * number_:.3f}" for number_ in (run.value, run.best))
    return f"validation {metric.name} {value}{' ' * bool(unit)}{unit} at the end, {best} at best"


def run_table(run: Run) -> Table:
    """Return one row per metric: at the end on each split, and its best on validation."""
    rows = []
    for metric in run.task.metrics:
        key = f"val_{metric.name}"
        found = [number(row, key) for row in [*run.metrics, run.section("result")]]
        known = [value for value in found if value is not None]
        best = (min(known) if metric.better == "lower" else max(known)) if known else None
        ends = [number(_end(run), f"{use}_{metric.name}") for use in ("train", "val", "test")]
        unit = value_unit(metric, run.task.item)
        shown = [NOTHING if value is None else f"{factor(metric) * value:.4f}" for value in (*ends, best)]
        rows.append((f"{metric.name}, {unit}" if unit else metric.name, *shown))
    return Table(
        columns=("metric", "train", "validation", "test", "best validation"), rows=tuple(rows)
    ).without_empty()


def _end(run: Run) -> dict:
    """The result, or the latest evaluation of an unfinished run."""
    return dict(run.section("result")) or (run.metrics[-1] if run.metrics else {})


def _progress(run: Run) -> str:
    step = run.metrics[-1]["step"] if run.metrics else 0
    steps = number(run.training, "steps")
    return f"{run.status}, step {step:,}" + (f" of {steps:,.0f}." if steps else ".")


def _rate_caption(run: Run) -> str:
    if any(row.get("rate_by_site") for row in run.metrics):
        return "The rate of each place at each evaluation, and the learning rate."
    return "The rates that the recipe plans, at each evaluation, and the learning rate as it was."
