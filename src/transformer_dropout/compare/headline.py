"""The answer of a comparison in sentences: who is best, what is shown, and whether the setting can tell."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..runs.task import Metric
from .metrics import difference_unit, factor, in_shown_unit, superlative, value_unit, with_unit
from .records import Comparison, Run, number
from .reference import bare_twin, best_arm, plain_dropout_arms
from .statistics import Difference, mean_interval, p_text
from .verdicts import Judgement, Kind, differences, interval_text, kind_of

FEW_PASSES = 16  # below this many passes over the data there is little overfitting to regularize

_NAMED = 4  # a headline that names more arms is not read
_CHANGED = 2  # and one that tells more changes neither
_GROUPS: dict[str, tuple[Kind, ...]] = {
    "shown better": ("better",),
    "shown worse": ("worse",),
    "no difference shown": ("no difference",),
    "not judged": ("no spread", "not enough seeds", "failed", "unfinished", "not run"),
}


@dataclass(frozen=True, kw_only=True)
class Regime:
    """Whether plain dropout beats no regularizer here; where it does not, rivals of dropout cannot be ranked.

    Args:
        tells: True or False where it could be tested, else None.
        text: the answer in one or two sentences.
        passes: passes over the training data, or None if no run says.
        gap: validation minus training without regularizer, as recorded, or None.
    """

    tells: bool | None
    text: str
    passes: float | None
    gap: float | None


def headline(comparison: Comparison, judgement: Judgement) -> str:
    """Return the answer, and where the best evaluations disagree with it."""
    return " ".join([answer(comparison, judgement), *disagreements(comparison, judgement)])


def answer(comparison: Comparison, judgement: Judgement) -> str:
    """Return the best arm at the last step, and what is shown there."""
    metric, best = comparison.metric, best_arm(comparison, comparison.arms)
    if best is None:
        return f"No run has finished with a validation {metric.name}, so there is nothing to compare yet."
    values = list(comparison.values(best).values())
    fewer = any(0 < len(comparison.values(arm)) < len(values) for arm in comparison.arms)
    seeds = (
        f"mean of {_count(len(values), 'seed')}{', among the arms that finished as many' if fewer else ''}"
    )
    start = f"{best} has the {superlative(metric)} validation {metric.name} "
    start += f"({_mean(comparison, values)}, {seeds})"
    if len(judgement.verdicts) == 1:
        return f"{start}; it is the only arm."
    groups = {
        words: [arm for arm, v in judgement.verdicts.items() if v.kind in kinds]
        for words, kinds in _GROUPS.items()
    }
    parts = [
        f"{words}: {_listed(arms)}" for words, arms in groups.items() if arms or words.startswith("shown")
    ]
    return f"{start}; against {judgement.reference.name}, {'; '.join(parts)}."


def disagreements(comparison: Comparison, judgement: Judgement) -> list[str]:
    """Return where each run's best evaluation says something else than its last step, in up to two sentences.

    Every arm is looked at against the reference and against the arm without regularizer.
    """
    metric, found = comparison.metric, list[str]()
    last, best = (best_arm(comparison, comparison.arms, values) for values in (None, comparison.best_values))
    if last != best and best is not None:
        values = list(comparison.best_values(best).values())
        lowest = f"{superlative(metric)} ({_mean(comparison, values)})"
        found.append(f"At each run's best evaluation, {best} has the {lowest}.")
    reference = judgement.reference.name
    told = []
    for base in dict.fromkeys(name for name in (reference, bare_twin(comparison, reference)) if name):
        at_end, at_best = differences(comparison, base), differences(comparison, base, comparison.best_values)
        changed = {
            arm: (last, at_best[arm])
            for arm, last in at_end.items()
            # Of the reference against no regularizer the other direction is told already.
            if arm != reference and _disagree(metric, last, at_best[arm], judgement.to_show)
        }
        if len(changed) > _CHANGED:
            told.append(f"against {base}, {len(changed)} arms")
        elif changed:
            arms = [f"{_listed([arm])} {_change(metric, *pair)}" for arm, pair in changed.items()]
            told.append(f"against {base}, {', '.join(arms)}")
    if told:
        found.append(f"The best evaluations say something else than the last step: {'; '.join(told)}.")
    return found


def _disagree(metric: Metric, last: Difference, best: Difference, to_show: float | None) -> bool:
    """Return whether the verdicts differ, or only one of the two differences is worth showing."""
    kinds = kind_of(metric, last), kind_of(metric, best)
    if None in kinds or to_show is None:
        return False
    sizes = [abs(difference.estimate.mean) for difference in (last, best)]
    return kinds[0] != kinds[1] or (max(sizes) > 2 * to_show and min(sizes) < to_show / 2)


def _change(metric: Metric, last: Difference, best: Difference) -> str:
    shown = [
        f"{factor(metric) * difference.estimate.mean:+.3f}, {kind_of(metric, difference)}"
        for difference in (best, last)
    ]
    return f"{shown[0]} (at the last step {shown[1]})"


def regime(comparison: Comparison) -> Regime:
    """Judge whether the best plain dropout beats an empty recipe with the same model and training settings.

    It is tested together with all other arms against that dropout, as in the table if that is the reference.
    """
    dropout = best_arm(comparison, plain_dropout_arms(comparison))
    bare = bare_twin(comparison, dropout)
    passes = _passes(comparison.usable(bare or dropout or comparison.arms[0]))
    gap = _gap(comparison.usable(bare)) if bare else None
    context = _context(comparison, passes, gap)
    unknown = "Whether this setting can tell regularizers apart is not known: "
    if dropout is None or bare is None:
        missing = (
            "plain dropout" if dropout is None else f"an empty recipe and the same settings as {dropout}"
        )
        text = f"{unknown}no finished arm has {missing}."
        return Regime(tells=None, text=text + context, passes=passes, gap=gap)
    found = differences(comparison, dropout).get(bare)
    if found is None or found.adjusted_p is None:
        text = f"{unknown}{dropout} and {bare} need 2 common seeds whose differences vary."
        return Regime(tells=None, text=text + context, passes=passes, gap=gap)
    # It is the bare arm's difference to dropout: what is worse of it is what dropout improves.
    tells = kind_of(comparison.metric, found) == "worse"
    rise = interval_text(comparison.metric, found)
    interval = f"{bare} minus {dropout}: {rise}, {p_text(found.adjusted_p)}"
    if tells:
        text = f"This setting can tell regularizers apart: {dropout} beats {bare} on validation ({interval})."
    else:
        text = "This setting cannot tell regularizers apart: "
        text += f"{dropout} is not shown to beat {bare} ({interval})."
    return Regime(tells=tells, text=text + context, passes=passes, gap=gap)


def _mean(comparison: Comparison, values: Sequence[float]) -> str:
    mean = in_shown_unit(comparison.metric, mean_interval(values)).mean
    return with_unit(f"{mean:.3f}", value_unit(comparison.metric, comparison.task.item))


def _passes(runs: list[Run]) -> float | None:
    found = [number(run.metrics[-1], "epochs") for run in runs if run.metrics]
    known = [epochs for epochs in found if epochs is not None]
    return sum(known) / len(known) if known else None


def _gap(runs: list[Run]) -> float | None:
    trained = [(run.value, number(run.section("result"), f"train_{run.task.metric.name}")) for run in runs]
    gaps = [val - train for val, train in trained if train is not None]
    return sum(gaps) / len(gaps) if gaps else None


def _context(comparison: Comparison, passes: float | None, gap: float | None) -> str:
    parts = []
    if passes is not None:
        few = f", fewer than the {FEW_PASSES} at which overfitting shows"
        # A pre-trained model overfits sooner, and so may any other task's.
        few = few if passes < FEW_PASSES and comparison.task.name == "language" else ""
        parts.append(f"{passes:.1f} passes over the training data{few}")
    if gap is not None:
        side = "above" if gap >= 0 else "below"
        size = f"{abs(factor(comparison.metric) * gap):.3f}"
        size = with_unit(size, difference_unit(comparison.metric))
        parts.append(f"Without regularizer, validation ends {size} {side} training")
    return "".join(f" {part}." for part in parts)


def _listed(arms: list[str]) -> str:
    if len(arms) > _NAMED:
        return _count(len(arms), "arm")
    return ", ".join(f"“{arm}”" if "," in arm else arm for arm in arms) or "no arm"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
