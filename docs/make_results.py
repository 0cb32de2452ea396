"""Write tables and figure of ``results.md`` from the committed records: ``python docs/make_results.py``."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from runpy import run_path

from drawing import BLUE, INK, ORANGE, page, text

from transformer_dropout.compare.metrics import difference_unit, in_shown_unit
from transformer_dropout.compare.records import Comparison, load_comparison, number
from transformer_dropout.compare.statistics import Difference, difference_text, differences_to
from transformer_dropout.compare.verdicts import differences, kind_of

DOCS = Path(__file__).parent
RECORDS = DOCS.parent / "experiments"
MARKS = re.compile(r"(<!-- (\w+) of make_results\.py -->\n).*?(<!-- end -->)", flags=re.DOTALL)
PALE = "#8C959F"
RDROP = "small_data + R-Drop 3"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One committed comparison.

    Attributes:
        folder: below ``experiments/``.
        title: what was trained, in a few words.
        none: its arm without a regularizer.
        dropout: its arm of plain dropout.
    """

    folder: str
    title: str
    none: str = "none"
    dropout: str

    def load(self) -> Comparison:
        """Return the records."""
        return load_comparison(RECORDS / self.folder)


SETTINGS = tuple(
    Setting(folder=folder, title=title, dropout=dropout)
    for folder, title, dropout in (
        ("default", "decoder from scratch, 20,000 bytes of docstrings", "dropout p=0.1"),
        ("layers", "the same, a layer or schedule each", "dropout p=0.1"),
        ("small_data/docstrings", "the same, recipes for small text", "dropout 0.1 + weight decay 1"),
        ("small_data/shakespeare", "the same, 20,000 bytes of Shakespeare", "dropout 0.1 + weight decay 1"),
        ("images", "perceptron, 300 digits", "dropout input 0.2 + hidden 0.5"),
        ("images_vit", "vision transformer, 300 digits", "dropout p=0.1"),
        ("regression", "perceptron, 442 rows of a table", "dropout hidden 0.5"),
        ("sentences", "pre-trained encoder, 500 sentences", "bert"),
        ("causal_lm", "pre-trained decoder, 300 windows of other text", "dropout"),
    )
    if (RECORDS / folder / "comparison.json").is_file()
)


def to_none(setting: Setting, comparison: Comparison, *, best: bool = False) -> dict[str, Difference]:
    """Return every arm's difference to no regularizer, tested together."""
    return differences(comparison, setting.none, comparison.best_values if best else None)


def cost(comparison: Comparison, arm: str) -> float | None:
    """Return the training FLOPs of one run of an arm."""
    found = [
        number(run.section("cost"), name)
        for run in comparison.usable(arm)
        for name in run.section("cost")
        if name.startswith("training_flops_per")
    ]
    steps = [number(run.section("result"), "step") for run in comparison.usable(arm)]
    return None if not found or None in (*found, *steps) else found[0] * steps[0]  # type: ignore[operator]


def mean(values: Iterable[float]) -> float:
    """Return the mean."""
    listed = list(values)
    return sum(listed) / len(listed)


def shown(comparison: Comparison, found: Difference) -> str:
    """Return a difference with its interval and a word."""
    verdict = kind_of(comparison.metric, found) or "not judged"
    mark = {"better": "**better**", "worse": "worse", "no difference": "no difference"}.get(verdict, verdict)
    return f"{difference_text(in_shown_unit(comparison.metric, found.estimate))} {mark}"


def settings_table() -> str:
    """Return what each arm changes against no regularizer, at the end and at the best evaluation."""
    lines = []
    for setting in SETTINGS:
        comparison = setting.load()
        last, best = to_none(setting, comparison), to_none(setting, comparison, best=True)
        unit = difference_unit(comparison.metric)
        base, seeds = mean(comparison.values(setting.none).values()), len(comparison.seeds)
        lines += [
            f"\n**{setting.title.capitalize()}** ([record](../experiments/{setting.folder}), {seeds} seeds; "
            f"none ends at {base:.3f} {unit})\n",
            "| arm | against none, last step | against none, best evaluation | training FLOPs |",
            "|---|---:|---:|---:|",
        ]
        bare = cost(comparison, setting.none)
        for arm in comparison.arms:
            if arm in last:
                own = cost(comparison, arm)
                ratio = f"{own / bare:.2f}" if own and bare else ""
                cells = (shown(comparison, last[arm]), shown(comparison, best[arm]), ratio)
                lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines).strip("\n")


def figure() -> str:
    """Return the same as a picture: a dot and an interval an arm, a part a setting."""
    parts, y, left, wide = [], 20.0, 300.0, 360.0
    for setting in SETTINGS:
        comparison = setting.load()
        found = {
            arm: in_shown_unit(comparison.metric, d.estimate)
            for arm, d in to_none(setting, comparison).items()
        }
        ends = [end for e in found.values() for end in (e.low, e.high, 0.0) if end is not None]
        low, high = min(ends), max(ends)
        scale = wide / ((high - low) or 1.0)
        parts.append(text(8, y, f"{setting.title} ({difference_unit(comparison.metric)} against none)"))
        zero = left - low * scale
        parts.append(f'<path stroke="{PALE}" d="M{zero:.1f} {y + 6:g}v{18 * len(found):g}"/>')
        for arm, estimate in found.items():
            y += 18
            colour = (
                INK
                if estimate.low is None or not estimate.without_zero
                else BLUE
                if estimate.mean < 0
                else ORANGE
            )
            parts.append(text(left - 10, y + 4, arm, "end"))
            if estimate.low is not None and estimate.high is not None:
                start, stop = left + (estimate.low - low) * scale, left + (estimate.high - low) * scale
                parts.append(f'<path stroke="{colour}" stroke-width="2" d="M{start:.1f} {y:g}H{stop:.1f}"/>')
            parts.append(
                f'<circle cx="{left + (estimate.mean - low) * scale:.1f}" cy="{y:g}" r="4" fill="{colour}"/>'
            )
        y += 34
    return page(left + wide + 20, y, parts)


def speed_of_learning() -> str:
    """Return the steps that each arm of the default setting takes to a training loss, and to its best."""
    comparison = load_comparison(RECORDS / "default")
    lines = ["| arm | steps to a training loss of 1.8 | step of the best evaluation |", "|---|---:|---:|"]
    for arm in comparison.arms:
        reached, best = [], []
        for run in comparison.usable(arm):
            rows = [row for row in run.metrics if "val_loss" in row]
            reached.append(next((row["step"] for row in rows if row["train_loss"] <= 1.8), None))
            best.append(min(rows, key=lambda row: row["val_loss"])["step"])
        steps = "not reached" if None in reached else f"{mean(reached):.0f}"
        lines.append(f"| {arm} | {steps} | {mean(best):.0f} |")
    return "\n".join(lines)


def kept_over_time(folder: str) -> str:
    """Return what the learned masks of a record keep in training, by block and step."""
    comparison = load_comparison(RECORDS / folder)
    lines = []
    for arm in comparison.arms:
        runs = [run for run in comparison.usable(arm) if any(row.get("keep_by_site") for row in run.metrics)]
        if not runs:
            continue
        steps = [row["step"] for row in runs[0].metrics if row.get("keep_by_site")]
        if not lines:
            lines = ["| arm, place | " + " | ".join(f"step {step}" for step in steps) + " |"]
            lines.append("|---|" + "---:|" * len(steps))
        for site in runs[0].metrics[-1]["keep_by_site"]:
            kept = [
                mean(row["keep_by_site"][site] for run in runs for row in run.metrics if row["step"] == step)
                for step in steps
            ]
            lines.append(
                f"| {arm}, {site.split('/')[0]} | " + " | ".join(f"{100 * k:.0f} %" for k in kept) + " |"
            )
    return "\n".join(lines)


def against(folder: str, reference: str) -> str:
    """Return every arm's differences to one arm of a record, at the end and at the best evaluation."""
    comparison = load_comparison(RECORDS / folder)
    last = differences(comparison, reference)
    best = differences(comparison, reference, comparison.best_values)
    lines = [
        f"| arm | last step | against {reference} | best evaluation | against {reference} |",
        "|---|---:|---:|---:|---:|",
    ]
    for arm in comparison.arms:
        means = (mean(comparison.values(arm).values()), mean(comparison.best_values(arm).values()))
        shown_there = [shown(comparison, found[arm]) if arm in found else "" for found in (last, best)]
        cells = (f"{means[0]:.3f}", shown_there[0], f"{means[1]:.3f}", shown_there[1])
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def tuned(folder: str, reference: str) -> str:
    """Return what each tuned method gives on fresh seeds: on test, and on validation, which chose for it."""
    comparison = load_comparison(RECORDS / folder)
    measures = {
        "test": partial(comparison.values, key="test_loss"),
        "validation": partial(comparison.values, key="val_loss"),
        "best evaluation": comparison.best_values,
    }
    found = {kind: differences(comparison, reference, values) for kind, values in measures.items()}
    bare = cost(comparison, reference)
    heads = "".join(f" {kind} | against {reference} |" for kind in measures)
    lines = [f"| method |{heads} training FLOPs |", "|---|" + "---:|" * (2 * len(measures) + 1)]
    for arm in sorted(comparison.arms, key=lambda arm: mean(measures["test"](arm).values())):
        cells = []
        for kind, values in measures.items():
            cells.append(f"{mean(values(arm).values()):.3f}")
            cells.append(shown(comparison, found[kind][arm]) if arm in found[kind] else "")
        own = cost(comparison, arm)
        cells.append(f"{own / bare:.2f}" if own and bare else "")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def by_width() -> str:
    """Return the loss of each width at each rate, and what rate 0.3 costs over 0.1, also against width 48."""
    comparison = load_comparison(RECORDS / "claims" / "widths")
    widths, rates = ("48", "96", "192"), ("0", "0.1", "0.2", "0.3")
    heads = " | ".join(f"p = {p}" for p in rates)
    lines = [f"| width | {heads} | 0.3 against 0.1 | that, against width 48 |", "|---|" + "---:|" * 6]
    for kind, values in (("last step", comparison.values), ("best evaluation", comparison.best_values)):
        losses = {width: [values(f"width {width}, p {p}") for p in rates] for width in widths}
        costs = {
            width: {seed: own[3][seed] - own[1][seed] for seed in own[1]} for width, own in losses.items()
        }
        alone = differences_to(dict.fromkeys(costs["48"], 0.0), costs)
        between = differences_to(costs["48"], {width: costs[width] for width in widths[1:]})
        for width, own in losses.items():
            cells = [f"{mean(found.values()):.3f}" for found in own]
            cells += [shown(comparison, found[width]) if width in found else "" for found in (alone, between)]
            lines.append(f"| {width}, {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def tuned_steps() -> str:
    """Return how long a step of tuned methods took, by one of dropout with weight decay."""
    record = json.loads((DOCS.parent / "benchmarks" / "tuned" / "record.json").read_text(encoding="utf-8"))
    lines = ["| a step of | takes | rounds | at most asked |", "|---|---:|---:|---:|"]
    for row in record["rows"]:
        name = row["name"].removeprefix("step of the tuned ").removesuffix(" / dropout + weight decay")
        rounds = row["per_round"]
        cells = (f"{row['value']:.2f}", f"{min(rounds):.2f} to {max(rounds):.2f}", f"{row['target']:.2f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def gates() -> str:
    """Return what was measured of the gates of trained models."""
    return run_path(str(RECORDS / "claims" / "gates.py"))["table"]().strip()


def small_text() -> str:
    """Return by how much each arm of the recipes for small text is worse than R-Drop's, on both texts."""
    texts = [load_comparison(RECORDS / "small_data" / name) for name in ("docstrings", "shakespeare")]
    found = [
        differences(comparison, RDROP, values)
        for comparison in texts
        for values in (None, comparison.best_values)
    ]
    own = cost(texts[0], RDROP)
    lines = [
        "| R-Drop against | its FLOPs | docstrings, last step | best evaluation | Shakespeare, last step "
        "| best evaluation |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for arm in found[0]:
        bare = cost(texts[0], arm)
        cells = [f"{bare / own:.2f}" if bare and own else ""]
        cells += [difference_text(one[arm].estimate) for one in found]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def redundancy() -> str:
    """Return what was measured of the units of trained models."""
    return run_path(str(RECORDS / "redundancy" / "measure.py"))["table"]().strip()


def references(folder: str) -> dict[str, str]:
    """Return the comparisons recorded below a folder, each with the arm that it names as its reference."""
    found = [load_comparison(file.parent) for file in (RECORDS / folder).glob("*/comparison.json")]
    return {each.folder.name: each.reference for each in found if each.reference}


def filled(words: str) -> str:
    """Return the page with the tables between its marks."""
    tables = {
        "settings": settings_table,
        "speed_of_learning": speed_of_learning,
        "kept_over_time": partial(kept_over_time, "default"),
        "kept_in_fine_tuning": partial(kept_over_time, "causal_lm"),
        "kept_of_sentences": partial(kept_over_time, "sentences"),
        "depth": partial(against, "depth", "0.1 everywhere"),
        "redundancy": redundancy,
        "small_text": small_text,
        **{f"tuned_{name}": partial(tuned, f"tuned/{name}", at) for name, at in references("tuned").items()},
        **{name: partial(against, f"claims/{name}", at) for name, at in references("claims").items()},
        "gates_measured": gates,
        "tuned_steps": tuned_steps,
        "widths": by_width,
        "longer": partial(tuned, "longer", "weight decay"),
    }
    return MARKS.sub(lambda found: f"{found[1]}\n{tables[found[2]]()}\n\n{found[3]}", words)


if __name__ == "__main__":
    place = DOCS / "results.md"
    place.write_text(filled(place.read_text(encoding="utf-8")), encoding="utf-8")
    (DOCS / "figures" / "results.svg").write_text(figure(), encoding="utf-8")
