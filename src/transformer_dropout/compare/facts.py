"""How runs were measured, and what a careful reader should know before believing the verdicts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .records import Comparison, Run, number
from .verdicts import failure

ENOUGH_SEEDS = 3
NAMED = 4  # runs that one caution names

# What a training that is not ours can only be asked, and how it is told.
CHECKS = {
    "paired_start": "equal first evaluation of the arms of a seed",
    "recipe_applied": "recipe applied",
    "repeatable": "evaluation repeated with the same numbers",
}


def progress(comparison: Comparison) -> str:
    """Return how many runs of how many are done, and what the others do."""
    words = ("finished", "running", "killed", "failed", "diverged", "interrupted")
    counts = {word: sum(run.status == word for run in comparison.runs) for word in words}
    text = f"{counts.pop('finished')} of {comparison.cells} runs are finished"
    waiting = {"not started": comparison.cells - len(comparison.runs)}
    rest = [f"{count} {word}" for word, count in (counts | waiting).items() if count]
    return f"{text}, {', '.join(rest)}." if rest else f"{text}."


def cautions(comparison: Comparison) -> list[str]:
    """Return what weakens the verdicts."""
    finished = [run for run in comparison.runs if run.usable]
    found = []
    if len(comparison.seeds) < ENOUGH_SEEDS:
        seeds = "1 seed is" if len(comparison.seeds) == 1 else f"{len(comparison.seeds)} seeds are"
        found.append(f"{seeds} few: take every verdict as provisional below {ENOUGH_SEEDS}.")
    uneven = [run for run in finished if run.section("result").get("evaluation_bit_equal") is False]
    if uneven:
        found.append(f"Two evaluations of the same weights differed in {_cells(uneven)}.")
    for check, words in CHECKS.items():
        wrong = [run for run in finished if run.section("checks").get(check) is False]
        if wrong:
            found.append(f"A check failed in {_cells(wrong)}: {words}.")
    restored = [run for run in finished if run.section("result").get("restored_step") is not None]
    if restored:
        found.append(
            f"{_cells(restored)} went back to an earlier step chosen by validation {comparison.metric.name}: "
            f"that {'minimum' if comparison.metric.better == 'lower' else 'maximum'} flatters the arm."
        )
    hot = [run for run in finished if _stays_hot(run)]
    if hot:
        found.append(f"The learning rate ends above a fifth of its peak in {_cells(hot)}.")
    return found + [
        f"The runs differ in {name} ({', '.join(values)}), which changes random masks, last digits and time."
        for name, values in _computed_differently(finished)
    ]


def facts(comparison: Comparison) -> dict[str, str]:
    """Return how the comparison was measured, one line each."""
    runs = [run for run in comparison.runs if run.usable] or list(comparison.runs)
    own = comparison.task.name != "trial"
    pairing = "arms of one seed share initialisation, data order and evaluation examples"
    lines = {
        "task": comparison.task.name,
        **data_facts(runs),
        "seeds": ", ".join(map(str, comparison.seeds)),
        "pairing": pairing if own else "",
        "evaluation": _evaluation(runs) if own else "",
        "training numbers": "in evaluation mode, on a fixed part of the training split" if own else "",
        **check_facts(runs),
        "statistics": (
            "moderated paired t-tests over common seeds, Bonferroni's correction over the arms, level 0.05; "
            "the intervals of all arms hold at once with 95 %"
        ),
        **computer_facts(runs),
        "command": comparison.command,
        "created": comparison.created,
    }
    return {name: text for name, text in lines.items() if text}


def data_facts(runs: Sequence[Run]) -> dict[str, str]:
    """Return source and splits of the data."""
    return {
        "data": _joined(runs, "data", ("source", "tokenizer")),
        "vocabulary": ", ".join(_distinct(runs, "data", "vocabulary_size")),
        "training split": _split(runs, "train"),
        "validation split": _split(runs, "validation"),
        "test split": _split(runs, "test"),
    }


def computer_facts(runs: Sequence[Run]) -> dict[str, str]:
    """Return what computed the runs."""
    return {
        "versions": _joined(runs, "versions", ("python", "torch", "transformer_dropout")),
        "machine": _joined(runs, "machine", ("cpu", "device", "threads", "platform")),
        "computed by": _joined(
            runs, "computed_by", sorted({k for r in runs for k in r.section("computed_by")})
        ),
    }


def check_facts(runs: Sequence[Run]) -> dict[str, str]:
    """Return a line for each check that a training of the user's own answers; nothing for our own runs."""
    asked = [run for run in runs if run.record.get("checks") is not None]
    if not asked:
        return {}
    found = {}
    for check, words in CHECKS.items():
        answers = [run.section("checks").get(check) for run in asked]
        counts = {"yes": answers.count(True), "no": answers.count(False), "not verified": answers.count(None)}
        told = {word: count for word, count in counts.items() if count}
        found[words] = (
            next(iter(told))
            if len(told) == 1
            else ", ".join(f"{word} in {n} runs" for word, n in told.items())
        )
    return found


def _evaluation(runs: Sequence[Run]) -> str:
    limits = sorted({str(run.training["eval_windows"]) for run in runs if run.training.get("eval_windows")})
    where = f"{' or '.join(limits)} windows of the validation split" if limits else "whole validation split"
    when = "at the final step, never the minimum over training"
    if any(run.section("result").get("restored_step") is not None for run in runs):
        when = "at the final step, or at the restored one where a run went back"
    checks = [run.section("result").get("evaluation_bit_equal") for run in runs]
    equal = f"two passes were bit-equal in {checks.count(True)} of {len(checks)} runs"
    read_once = "; the test split was read once, at the end" if _split(runs, "test") else ""
    return f"{where}, in evaluation mode, {when}; {equal}{read_once}"


def _computed_differently(runs: Sequence[Run]) -> Iterator[tuple[str, list[str]]]:
    """Yield what differs between two runs, among what decides the last digits."""
    places = [("versions", "torch"), ("machine", "device"), ("machine", "cpu"), ("machine", "threads")]
    flat = {id(run): dict(_flat(run.section("computed_by"))) for run in runs}
    for section, key in places:
        values = _distinct(runs, section, key)
        if len(values) > 1:
            yield f"{section} {key}", values
    for name in dict.fromkeys(name for found in flat.values() for name in found):
        values = sorted({flat[id(run)].get(name, "not recorded") for run in runs})
        if len(values) > 1:
            yield name, values


def _flat(section: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, str]]:
    for key, value in section.items():
        name = f"{within} {key}".strip().replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, name)
        else:
            yield name, str(value)


def unfinished(comparison: Comparison) -> list[tuple[Run, str]]:
    """Return the runs that do not count and are not running, each with the reason."""
    return [(run, failure(run)) for run in comparison.runs if not run.usable and run.status != "running"]


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
        f"{size:,} {key}"
        for key, size in sizes.items()
        if isinstance(size, int) and not isinstance(size, bool)
    ]
    digest = data.get(f"{split}_sha256") or sizes.get("sha256")
    return ", ".join([*parts, f"sha256 {digest}"] if digest else parts)
