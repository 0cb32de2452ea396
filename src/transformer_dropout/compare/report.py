"""Writes what a comparison found: a page to look at, a Markdown table, and every number as JSON."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..runs.files import write_atomically
from . import plots
from .records import Comparison, Run, load_comparison, number
from .table import cost_of, cost_table, detail_table, result_estimate, result_table
from .verdicts import Judgement, failure, judge

FORMAT = 1
ENOUGH_SEEDS = 3
NAMED = 4  # runs that one caution names


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of the page: SVG text and what to read in it."""

    svg: Markup
    caption: str


_FIGURES: tuple[tuple[Callable[[Comparison, Judgement], str | None], str], ...] = (
    (
        plots.forest_figure,
        "Difference to the reference over common seeds, with the plain 95 % paired t-interval. Filled: shown "
        "after Holm's correction over all arms. Open: no difference shown.",
    ),
    (
        plots.loss_figure,
        "Mean over seeds; with up to six arms a band shows the range from the lowest to the highest seed. "
        "Both losses are measured in evaluation mode; the first quarter of a run may lie above the picture.",
    ),
    (
        plots.keep_figure,
        "Fraction of entries that learned masks keep, mean and range over seeds: as sampled in training, and "
        "as used in evaluation.",
    ),
    (
        plots.cost_figure,
        "Final validation loss with its 95 % interval over seeds. These unpaired intervals hold the spread "
        "between seeds, so two arms may overlap here and still differ in the paired figure. Arms of nearly "
        "equal cost are set side by side; the star is the reference.",
    ),
)


def write_report(folder: Path) -> Path:
    """Write ``report.html``, ``table.md`` and ``summary.json`` into a comparison folder; return the page.

    Each file is replaced in one step, so that a reader never sees half of one.

    Args:
        folder: a folder written by ``dropout compare``, finished or not.

    Raises:
        InputError: the folder holds no comparison, or runs that do not compare.
    """
    comparison = load_comparison(folder)
    judgement = judge(comparison)
    page = folder / "report.html"
    write_atomically(folder / "table.md", markdown(comparison, judgement))
    write_atomically(
        folder / "summary.json", json.dumps(summary(comparison, judgement), indent=1, allow_nan=False) + "\n"
    )
    write_atomically(page, render(comparison, judgement))
    return page


def render(comparison: Comparison, judgement: Judgement) -> str:
    """Return the page: one self-contained HTML text without scripts."""
    environment = Environment(
        loader=PackageLoader("transformer_dropout.compare", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    drawn = [(draw(comparison, judgement), caption) for draw, caption in _FIGURES]
    return environment.get_template("report.html.jinja").render(
        comparison=comparison,
        judgement=judgement,
        results=result_table(comparison, judgement),
        costs=cost_table(comparison),
        details=detail_table(judgement),
        figures=[Figure(svg=Markup(svg), caption=caption) for svg, caption in drawn if svg is not None],
        cautions=cautions(comparison),
        alarms={arm: found for arm in comparison.arms if (found := _alarms(comparison, arm))},
        notes=sorted(
            {(run.name, str(note)) for run in comparison.runs for note in run.record.get("notes") or ()}
        ),
        unfinished=[(run, failure(run)) for run in comparison.runs if not run.usable],
        facts=facts(comparison),
        recipes={arm: _settings(comparison, arm) for arm in comparison.arms},
    )


def markdown(comparison: Comparison, judgement: Judgement) -> str:
    """Return headline, regime and both tables as GitHub Markdown."""
    parts = (
        f"**{judgement.headline}**\n",
        f"{judgement.regime.text}\n",
        f"Reference: {judgement.reference.name}, because {judgement.reference.why}.\n",
        result_table(comparison, judgement).markdown(),
        f"Losses in nats a {comparison.item}, mean over seeds ± half the 95 % t-interval; difference: arm "
        "minus reference, paired by seed, with its 95 % t-interval; verdict: Holm-adjusted p below 0.05.\n",
        cost_table(comparison).markdown(),
    )
    return "\n".join(parts)


def summary(comparison: Comparison, judgement: Judgement) -> dict[str, Any]:
    """Return every number of the report as plain data; losses in nats per token, None where there is none."""
    return {
        "format": FORMAT,
        "command": comparison.command,
        "created": comparison.created,
        "seeds": list(comparison.seeds),
        "headline": judgement.headline,
        "reference": asdict(judgement.reference),
        "regime": asdict(judgement.regime),
        "cautions": cautions(comparison),
        "arms": [_arm_summary(comparison, judgement, arm) for arm in comparison.arms],
        "facts": facts(comparison),
    }


def cautions(comparison: Comparison) -> list[str]:
    """Return what a careful reader should know before believing the verdicts."""
    finished = [run for run in comparison.runs if run.usable]
    found = []
    if len(comparison.seeds) < ENOUGH_SEEDS:
        found.append(
            f"{len(comparison.seeds)} seeds are few: take every verdict as provisional below {ENOUGH_SEEDS}."
        )
    uneven = [run for run in finished if run.section("result").get("evaluation_bit_equal") is False]
    if uneven:
        found.append(f"Two evaluations of the same weights differed in {_cells(uneven)}.")
    restored = [run for run in finished if run.section("result").get("restored_step") is not None]
    if restored:
        found.append(
            f"{_cells(restored)} went back to an earlier step chosen by validation loss: "
            "that minimum flatters the arm."
        )
    hot = [run for run in finished if _stays_hot(run)]
    if hot:
        found.append(f"The learning rate ends above a fifth of its peak in {_cells(hot)}.")
    for section, key in (
        ("versions", "torch"),
        ("machine", "device"),
        ("machine", "cpu"),
        ("machine", "threads"),
    ):
        values = _distinct(finished, section, key)
        if len(values) > 1:
            found.append(
                f"The runs differ in {section} {key} ({', '.join(values)}), "
                "which changes random masks and time."
            )
    return found


def facts(comparison: Comparison) -> dict[str, str]:
    """Return how the comparison was measured, one line each."""
    runs = [run for run in comparison.runs if run.usable] or list(comparison.runs)
    checks = [run.section("result").get("evaluation_bit_equal") for run in runs]
    lines = {
        "data": _joined(runs, "data", ("source", "tokenizer")),
        "vocabulary": ", ".join(_distinct(runs, "data", "vocabulary_size")),
        "training split": _split(runs, "train"),
        "validation split": _split(runs, "validation"),
        "seeds": ", ".join(map(str, comparison.seeds)),
        "pairing": "arms of one seed share initialisation, data order and evaluation windows",
        "evaluation": (
            f"{_windows(runs)}, in evaluation mode, {_when(runs)}; "
            f"two passes were bit-equal in {checks.count(True)} of {len(checks)} runs"
        ),
        "training loss": "in evaluation mode, on a fixed part of the training split",
        "statistics": "paired t-test over common seeds, Holm's correction over the arms, level 0.05",
        "versions": _joined(runs, "versions", ("python", "torch", "transformer_dropout")),
        "machine": _joined(runs, "machine", ("cpu", "device", "threads", "platform")),
        "command": comparison.command,
        "created": comparison.created,
    }
    return {name: text for name, text in lines.items() if text}


def _windows(runs: Sequence[Run]) -> str:
    limits = sorted({str(run.training["eval_windows"]) for run in runs if run.training.get("eval_windows")})
    return f"{' or '.join(limits)} windows of the validation split" if limits else "whole validation split"


def _when(runs: Sequence[Run]) -> str:
    if any(run.section("result").get("restored_step") is not None for run in runs):
        return "at the final step, or at the restored one where a run went back"
    return "at the final step, never the minimum over training"


def _arm_summary(comparison: Comparison, judgement: Judgement, arm: str) -> dict[str, Any]:
    verdict = judgement.verdicts[arm]
    results = {
        key: result_estimate(comparison, arm, key) for key in ("train_loss", "val_loss", "keep", "keep_eval")
    }
    return {
        "arm": arm,
        "verdict": verdict.kind,
        "text": verdict.text,
        "difference": asdict(verdict.difference) if verdict.difference else None,
        **{key: asdict(estimate) if estimate else None for key, estimate in results.items()},
        "val_loss_by_seed": {str(seed): loss for seed, loss in comparison.losses(arm).items()},
        "cost": asdict(cost_of(comparison, arm)),
        "unfinished": {str(run.seed): failure(run) for run in comparison.of(arm) if not run.usable},
        "alarms": {
            str(run.seed): run.record["alarms"] for run in comparison.of(arm) if run.record.get("alarms")
        },
    }


def _alarms(comparison: Comparison, arm: str) -> list[str]:
    return [
        f"seed {run.seed}: {alarm}" for run in comparison.of(arm) for alarm in run.record.get("alarms") or ()
    ]


def _settings(comparison: Comparison, arm: str) -> str:
    """The arm's recipe and training settings as YAML, or a word where it was never run."""
    config = next((run.section("config") for run in comparison.of(arm)), None)
    if config is None:
        return "not run"
    shown = {key: config[key] for key in ("recipe", "training", "model") if key in config}
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)


def _stays_hot(run: Run) -> bool:
    peak, end = number(run.training, "lr"), number(run.metrics[-1], "lr") if run.metrics else None
    return peak is not None and end is not None and end > 0.2 * peak


def _cells(runs: Sequence[Run]) -> str:
    named = ", ".join(f"{run.name} seed {run.seed}" for run in runs[:NAMED])
    return named if len(runs) <= NAMED else f"{named} and {len(runs) - NAMED} more runs"


def _distinct(runs: Sequence[Run], section: str, key: str) -> list[str]:
    return sorted(
        {str(run.section(section)[key]) for run in runs if run.section(section).get(key) is not None}
    )


def _joined(runs: Sequence[Run], section: str, keys: Sequence[str]) -> str:
    found = {key: " / ".join(_distinct(runs, section, key)) for key in keys}
    return ", ".join(f"{key.replace('_', '-')} {text}" for key, text in found.items() if text)


def _split(runs: Sequence[Run], split: str) -> str:
    """Size and hash of one split; a comparison has only one, so the first run that tells speaks for all."""
    data = next((run.section("data") for run in runs if run.section("data").get(split)), {})
    sizes = data.get(split) or {}
    parts = [
        f"{sizes[key]:,} {key}" for key in ("tokens", "bytes", "documents") if isinstance(sizes.get(key), int)
    ]
    parts += [f"sha256 {data[f'{split}_sha256']}"] if data.get(f"{split}_sha256") else []
    return ", ".join(parts)
