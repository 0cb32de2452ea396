"""Writes what a comparison found: a page to look at, a Markdown table, and every number as JSON."""

import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from ..audit._template import rendered
from ..errors import InputError
from ..runs.task import Metric
from . import plots
from .facts import cautions, facts, progress, unfinished
from .headline import answer, disagreements, headline, regime
from .metrics import value_unit
from .records import Comparison, Run, load_comparison, number
from .table import (
    cost_of,
    cost_table,
    detail_table,
    escaped,
    metrics_table,
    result_estimate,
    result_table,
)
from .verdicts import Judgement, failure, judge

FORMAT = 1
# How often an open page looks for what is new while runs go on.
RELOAD_SECONDS = 10
SECONDS_BETWEEN_FIGURES = 150
# How many times as long as the last report took, the next one waits.
PAUSE = 20
NORMAL_95 = 1.96


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of the page: SVG text and what to read in it."""

    svg: Markup
    caption: str


_FIGURES: tuple[tuple[Callable[[Comparison, Judgement], str | None], str], ...] = (
    (
        plots.forest_figure,
        "Difference to the reference over common seeds. The intervals of all arms hold at once with 95 %, "
        "and an arm is shown to differ exactly where its interval leaves out 0. Filled: shown. Open: no "
        "difference shown.",
    ),
    (
        plots.metric_figure,
        "Mean over seeds; with up to six arms a band shows the range over seeds. Both are measured in "
        "evaluation mode; the first quarter of a run may lie outside the picture.",
    ),
    (
        plots.keep_figure,
        "Fraction of entries that learned masks keep, mean and range over seeds: as sampled in training, and "
        "as used in evaluation.",
    ),
    (
        plots.cost_figure,
        "What decides, at the end, with its 95 % interval over seeds. These unpaired intervals hold the "
        "spread between seeds, so two arms may overlap here and still differ in the paired figure. Arms of "
        "nearly equal cost are set side by side; the star is the reference.",
    ),
)


def write_report(folder: Path) -> Path:
    """Write ``report.html``, ``table.md`` and ``summary.json`` into a comparison folder; return the page.

    All three or none are written, each replaced in one step, so that a reader never sees half of one. While
    runs go on the page reloads itself.

    Args:
        folder: a folder written by ``dropout compare``, finished or not.

    Raises:
        InputError: the folder holds no comparison, runs that do not compare, or cannot be written to.
    """
    return LiveReport(folder).write(figures=True)


class LiveReport:
    """Rewrites the report of a comparison while its runs go on, without taking much time from them.

    Args:
        folder: a folder written by ``dropout compare``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.figures = folder, list[Figure]()
        self.drawn_at = time.monotonic()
        self.next_at = -math.inf

    def update(self) -> None:
        """Write all files, unless that would take more than a small share of the time.

        Of hundreds of runs that were done before, or are stopped at once, each would wait for it.
        """
        if time.monotonic() >= self.next_at:
            self.write()

    def write(self, *, figures: bool = False) -> Path:
        """Write all files as ``write_report`` does.

        Args:
            figures: draw them anew, which else happens every few minutes, and when no run goes on.
        """
        began = time.monotonic()
        comparison = load_comparison(self.folder)
        judgement = judge(comparison)
        due = time.monotonic() - self.drawn_at > SECONDS_BETWEEN_FIGURES
        if figures or due or not comparison.going_on:
            self.figures, self.drawn_at = draw(comparison, judgement), time.monotonic()
        numbers = json.dumps(summary(comparison, judgement), indent=1, allow_nan=False)
        texts = {"table.md": markdown(comparison, judgement), "summary.json": numbers + "\n"}
        write_all(self.folder, texts | {"report.html": render(comparison, judgement, self.figures)})
        ended = time.monotonic()
        self.next_at = ended + PAUSE * (ended - began)
        return self.folder / "report.html"


def draw(comparison: Comparison, judgement: Judgement) -> list[Figure]:
    """Return the figures that there is something to see in."""
    drawn = [(figure(comparison, judgement), caption) for figure, caption in _FIGURES]
    return [Figure(svg=Markup(svg), caption=caption) for svg, caption in drawn if svg is not None]


def write_all(folder: Path, texts: Mapping[str, str]) -> None:
    """Write files into a folder, all or none.

    Raises:
        InputError: when there is no room or no permission.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".report-", dir=folder) as place:
            for name, text in texts.items():
                (Path(place) / name).write_text(text, encoding="utf-8")
            for name in texts:
                (Path(place) / name).replace(folder / name)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"The report cannot be written to {folder}: {reason}.") from None


def render(comparison: Comparison, judgement: Judgement, figures: Sequence[Figure]) -> str:
    """Return the page: one self-contained HTML text without scripts."""
    return page(
        "report.html.jinja",
        title=answer(comparison, judgement),
        reload=RELOAD_SECONDS if comparison.going_on else None,
        comparison=comparison,
        judgement=judgement,
        headline=answer(comparison, judgement),
        disagreements=disagreements(comparison, judgement),
        regime=regime(comparison),
        progress=progress(comparison),
        results=result_table(comparison, judgement),
        note=result_note(comparison),
        others=metrics_table(comparison, judgement),
        others_note=others_note(comparison),
        costs=cost_table(comparison),
        details=detail_table(comparison, judgement),
        figures=figures,
        cautions=cautions(comparison),
        alarms={arm: found for arm in comparison.arms if (found := _alarms(comparison, arm))},
        notes=sorted({(run.name, note) for run in comparison.runs for note in run.record.get("notes") or ()}),
        unfinished=unfinished(comparison),
        facts=facts(comparison),
        recipes={arm: _settings(comparison, arm) for arm in comparison.arms},
    )


def page(template: str, **content: Any) -> str:
    """Return a page from one of the templates beside this file; every text in it is escaped."""
    return rendered("compare", template, **content)


def markdown(comparison: Comparison, judgement: Judgement) -> str:
    """Return headline, regime and all tables as GitHub Markdown."""
    reference, others = judgement.reference, metrics_table(comparison, judgement)
    parts = [
        f"**{escaped(headline(comparison, judgement))}**\n",
        f"{escaped(regime(comparison).text)}\n",
        f"Reference: {escaped(reference.name)}, because {escaped(reference.why)}.\n",
        *([] if comparison.finished == comparison.cells else [f"{progress(comparison)}\n"]),
        result_table(comparison, judgement).markdown(),
        f"{result_note(comparison)}\n",
        *([] if others is None else [others.markdown(), f"{others_note(comparison)}\n"]),
        cost_table(comparison).markdown(),
    ]
    return "\n".join(parts)


def result_note(comparison: Comparison) -> str:
    """Return what stands below the table of results."""
    metric = comparison.metric
    return (
        f"{_measured(metric, comparison.task.item)}, mean over seeds ± half the 95 % t-interval, at the last "
        "step or the restored one. A difference is arm minus reference, paired by seed, in a moderated "
        "t-test; the intervals of a column hold for all its arms at once with 95 %, and the verdict is "
        "whether 0 lies outside. Best: each run's best evaluation on validation, a choice that flatters. "
        "More seeds: so many further ones show a true difference of that size with a chance of 80 %, as far "
        "as the variance is known."
    )


def others_note(comparison: Comparison) -> str:
    """Return what stands below the table of the metrics that do not decide."""
    measures = "; ".join(_measured(metric, comparison.task.item) for metric in comparison.task.metrics)
    text = (
        f"{measures}. The intervals of a column hold for all its arms at once with 95 %; "
        "no verdict reads them."
    )
    size = _test_size(comparison.runs)
    shares = [metric for metric in comparison.task.metrics if metric.unit == "share"]
    if not size or not shares:
        return text
    key = f"test_{shares[0].name}"
    values = [value for arm in comparison.arms for value in comparison.values(arm, key).values()]
    if not values:
        return text
    share = sum(values) / len(values)
    width = 100 * NORMAL_95 * (max(0.0, share * (1 - share)) / size) ** 0.5
    return (
        f"{text} They hold the spread between seeds. The {size:,.0f} {comparison.task.item or 'example'}s of "
        f"the test split are the same for all; other ones would move every {shares[0].name} by about "
        f"± {width:.1f} points."
    )


def summary(comparison: Comparison, judgement: Judgement) -> dict[str, Any]:
    """Return every number of the report as plain data, in units as recorded; None where there is none."""
    return {
        "format": FORMAT,
        "command": comparison.command,
        "created": comparison.created,
        "seeds": list(comparison.seeds),
        "task": asdict(comparison.task),
        "going_on": comparison.going_on,
        "progress": progress(comparison),
        "headline": headline(comparison, judgement),
        "disagreements": disagreements(comparison, judgement),
        "reference": asdict(judgement.reference),
        "regime": asdict(regime(comparison)),
        "difference_to_show": judgement.to_show,
        "cautions": cautions(comparison),
        "arms": [_arm_summary(comparison, judgement, arm) for arm in comparison.arms],
        "facts": facts(comparison),
    }


def _arm_summary(comparison: Comparison, judgement: Judgement, arm: str) -> dict[str, Any]:
    verdict = judgement.verdicts[arm]
    names = [f"{use}_{metric.name}" for metric in comparison.task.metrics for use in ("train", "val", "test")]
    results = {key: result_estimate(comparison, arm, key) for key in (*names, "keep", "keep_eval")}
    more = verdict.more_seeds
    return {
        "arm": arm,
        "verdict": verdict.kind,
        "text": verdict.text,
        "difference": asdict(verdict.difference) if verdict.difference else None,
        "difference_at_best": asdict(verdict.at_best) if verdict.at_best else None,
        "more_seeds": None if more is None or more == float("inf") else more,
        **{key: asdict(estimate) if estimate else None for key, estimate in results.items()},
        f"{comparison.task.value}_by_seed": _by_seed(comparison.values(arm)),
        f"best_{comparison.task.value}_by_seed": _by_seed(comparison.best_values(arm)),
        "cost": asdict(cost_of(comparison, arm)),
        "unfinished": {str(run.seed): failure(run) for run in comparison.of(arm) if not run.usable},
        "alarms": {
            str(run.seed): run.record["alarms"] for run in comparison.of(arm) if run.record.get("alarms")
        },
    }


def _by_seed(values: Mapping[int, float]) -> dict[str, float]:
    return {str(seed): value for seed, value in values.items()}


def _measured(metric: Metric, item: str) -> str:
    unit = value_unit(metric, item)
    name = metric.name[:1].upper() + metric.name[1:]
    return f"{name} in {unit}" if unit else name


def _test_size(runs: Sequence[Run]) -> float | None:
    for run in runs:
        sizes = run.section("data").get("test") or {}
        for key in (f"{run.task.item}s", "documents"):
            if number(sizes, key):
                return number(sizes, key)
    return None


def _alarms(comparison: Comparison, arm: str) -> list[str]:
    return [
        f"seed {run.seed}: {alarm}" for run in comparison.of(arm) for alarm in run.record.get("alarms") or ()
    ]


def _settings(comparison: Comparison, arm: str) -> str:
    """The arm's recipe and training settings as YAML, or a word where it was never run."""
    run = next(iter(comparison.of(arm)), None)
    return "not run" if run is None else settings_text(run)


def settings_text(run: Run) -> str:
    """Return a run's recipe and settings as YAML."""
    config = run.section("config")
    shown = {key: config[key] for key in ("recipe", "settings", "training", "model") if key in config}
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
