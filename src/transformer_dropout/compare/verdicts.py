"""Turns paired differences into sentences: which arm is the reference, what is shown, and what is not."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import InputError, did_you_mean
from .records import Comparison, Run, number
from .statistics import Difference, difference_text, differences_to, mean_interval, p_text

LEVEL = 0.05
FEW_PASSES = 16  # below this many passes over the data there is little overfitting to regularize

_NAMED = 4  # a headline that names more arms is not read

Kind = Literal[
    "reference",
    "better",
    "worse",
    "no difference",
    "no spread",
    "not enough seeds",
    "failed",
    "unfinished",
    "not run",
]

_UNUSABLE: dict[str, Kind] = {"running": "unfinished", "interrupted": "unfinished"}
_GROUPS: dict[str, tuple[Kind, ...]] = {
    "shown better": ("better",),
    "shown worse": ("worse",),
    "no difference shown": ("no difference",),
    "not judged": ("no spread", "not enough seeds", "failed", "unfinished", "not run"),
}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The arm every other arm is compared with, and why it is that one."""

    name: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the comparison shows about one arm.

    Args:
        arm: the arm's name.
        kind: the verdict in a word or three.
        text: the verdict in one line, with its interval and how many seeds are missing.
        difference: arm minus reference in nats per token, or None if no seed is common to both.
    """

    arm: str
    kind: Kind
    text: str
    difference: Difference | None


@dataclass(frozen=True, kw_only=True)
class Regime:
    """Whether plain dropout beats no regularizer here; where it does not, rivals of dropout cannot be ranked.

    Args:
        tells: True or False where it could be tested, else None.
        text: the answer in one or two sentences.
        passes: passes over the training data, or None if no run says.
        gap: validation minus training loss without regularizer, in nats per token, or None.
    """

    tells: bool | None
    text: str
    passes: float | None
    gap: float | None


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Everything concluded from one comparison."""

    reference: Reference
    verdicts: dict[str, Verdict]
    regime: Regime
    headline: str


def judge(comparison: Comparison) -> Judgement:
    """Return the reference, one verdict per arm, the regime and the headline."""
    reference = reference_arm(comparison)
    verdicts = arm_verdicts(comparison, reference.name)
    return Judgement(
        reference=reference,
        verdicts=verdicts,
        regime=regime(comparison),
        headline=headline(comparison, reference.name, verdicts),
    )


def reference_arm(comparison: Comparison) -> Reference:
    """Return the arm to compare with: the one asked for, else the best plain dropout, else no regularizer.

    Best plain dropout: among arms whose recipe is only ``Dropout`` with some p above 0, those with the lowest
    weight decay; of these the lowest mean validation loss over the most finished seeds. Picking the best of
    several favours the reference, so the verdicts on the other arms err on the careful side.

    Raises:
        InputError: the reference asked for is none of the arms.
    """
    asked = comparison.reference
    if asked is not None:
        if asked not in comparison.arms:
            raise InputError(
                f"The reference {asked!r} is none of the arms.{did_you_mean(asked, comparison.arms)}"
            )
        return Reference(name=asked, why="it was asked for")
    dropout = _best(comparison, _plain_dropout_arms(comparison))
    if dropout is not None:
        return Reference(name=dropout, why="it is the plain dropout with the lowest validation loss")
    bare = [
        arm
        for arm in comparison.arms
        if comparison.usable(arm) and _is_bare(comparison.usable(arm)[0].recipe)
    ]
    if bare:
        return Reference(name=bare[0], why="no arm is plain dropout, and its recipe is empty")
    finished = [arm for arm in comparison.arms if comparison.usable(arm)]
    return Reference(
        name=(finished or comparison.arms)[0],
        why="no finished arm is plain dropout or has an empty recipe, and it comes first",
    )


def arm_verdicts(comparison: Comparison, reference: str) -> dict[str, Verdict]:
    """Return one verdict per arm, in the order of the arms.

    Better and worse ask for a Holm-adjusted p below 0.05; runs that did not finish are counted, not compared.

    Args:
        comparison: the runs.
        reference: the name of the arm to compare with.
    """
    rivals = {arm: comparison.losses(arm) for arm in comparison.arms if arm != reference}
    differences = differences_to(comparison.losses(reference), rivals)
    return {arm: _verdict(comparison, arm, reference, differences.get(arm)) for arm in comparison.arms}


def regime(comparison: Comparison) -> Regime:
    """Say whether the best plain dropout beats an empty recipe with the same model and training settings.

    The p value is Holm-adjusted over all such dropout arms, because it is the best of them that is tested.
    """
    dropout = _plain_dropout_arms(comparison)
    best = _best(comparison, dropout)
    bare = _bare_twin(comparison, best)
    passes = _passes(comparison.usable(bare or best or comparison.arms[0]))
    gap = _gap(comparison.usable(bare)) if bare else None
    context = _context(passes, gap, comparison.item)
    if best is None or bare is None:
        missing = "plain dropout" if best is None else f"an empty recipe and the same settings as {best}"
        text = (
            f"Whether this setting can tell regularizers apart is not known: no finished arm has {missing}."
        )
        return Regime(tells=None, text=text + context, passes=passes, gap=gap)
    found = differences_to(comparison.losses(bare), {arm: comparison.losses(arm) for arm in dropout}).get(
        best
    )
    if found is None or found.holm_p is None:
        text = "Whether this setting can tell regularizers apart is not known: "
        text += f"{best} and {bare} need 2 common seeds whose differences vary."
        return Regime(tells=None, text=text + context, passes=passes, gap=gap)
    tells = found.holm_p < LEVEL and found.estimate.mean < 0
    interval = f"{difference_text(found.estimate)} nats, Holm {p_text(found.holm_p)}"
    if tells:
        text = f"This setting can tell regularizers apart: {best} beats {bare} on validation ({interval})."
    else:
        text = (
            f"This setting cannot tell regularizers apart: {best} is not shown to beat {bare} ({interval})."
        )
    return Regime(tells=tells, text=text + context, passes=passes, gap=gap)


def headline(comparison: Comparison, reference: str, verdicts: dict[str, Verdict]) -> str:
    """Return the answer in one sentence: the lowest validation loss, and which differences are shown."""
    best = _best(comparison, comparison.arms)
    if best is None:
        return "No run has finished with a validation loss, so there is nothing to compare yet."
    losses = list(comparison.losses(best).values())
    fewer = any(0 < len(comparison.losses(arm)) < len(losses) for arm in comparison.arms)
    start = (
        f"{best} has the lowest validation loss ({mean_interval(losses).mean:.3f} nats a {comparison.item}, "
    )
    start += (
        f"mean of {_count(len(losses), 'seed')}{', among the arms that finished as many' if fewer else ''})"
    )
    if len(verdicts) == 1:
        return f"{start}; it is the only arm."
    groups = {
        words: [arm for arm, v in verdicts.items() if v.kind in kinds] for words, kinds in _GROUPS.items()
    }
    parts = [
        f"{words}: {_listed(arms)}" for words, arms in groups.items() if arms or words.startswith("shown")
    ]
    return f"{start}; against {reference}, {'; '.join(parts)}."


def failure(run: Run) -> str:
    """Return why a run does not count, in one line: its status and, of a traceback, the last line."""
    if run.status == "finished":
        return "failed: finished without a finite validation loss"
    lines = [line.strip() for line in str(run.record.get("error") or "").splitlines() if line.strip()]
    if not lines:
        return run.status
    return f"{run.status}: {lines[-1] if lines[0].startswith('Traceback') else lines[0]}"


def _verdict(comparison: Comparison, arm: str, reference: str, difference: Difference | None) -> Verdict:
    usable, runs, wanted = comparison.usable(arm), comparison.of(arm), len(comparison.seeds)
    missing = f"; {len(usable)} of {wanted} seeds finished" if len(usable) < wanted else ""
    kind: Kind
    if not usable:
        kind = _UNUSABLE.get(runs[0].status, "failed") if runs else "not run"
        text = failure(runs[0]) if runs else "not run"
        text = f"reference, {text}" if arm == reference else text
    elif arm == reference:
        kind, text = "reference", "reference"
    elif difference is None or difference.estimate.n < 2:
        kind, text = "not enough seeds", "not enough seeds"
        text += f": {difference.estimate.n if difference else 0} in common with {reference}"
    elif difference.holm_p is None:
        kind = "no spread"
        text = f"no verdict: the difference to {reference} is {difference.estimate.mean:.3f} at every seed"
    else:
        kind, text = _shown(difference, difference.holm_p, reference)
    return Verdict(arm=arm, kind=kind, text=text + missing, difference=difference)


def _shown(difference: Difference, p: float, reference: str) -> tuple[Kind, str]:
    estimate = difference.estimate
    if p >= LEVEL:
        return "no difference", f"no difference shown ({difference_text(estimate)} nats, Holm {p_text(p)})"
    better = estimate.mean < 0
    size, _, interval = difference_text(estimate, flip=better).partition(" ")
    kind: Kind = "better" if better else "worse"
    return kind, f"{kind} than {reference} by {size} nats {interval} (Holm {p_text(p)})"


def _plain_dropout_arms(comparison: Comparison) -> list[str]:
    """The arms of plain dropout at the lowest weight decay at which there is one."""
    runs = {arm: comparison.usable(arm)[0] for arm in comparison.arms if comparison.usable(arm)}
    plain = {a: run for a, run in runs.items() if _is_plain_dropout(run.recipe) and not run.penalised}
    lowest = min((run.weight_decay for run in plain.values()), default=0.0)
    return [arm for arm, run in plain.items() if run.weight_decay == lowest]


def _is_plain_dropout(recipe: list[dict]) -> bool:
    return all(rule.get("layer") == "Dropout" for rule in recipe) and any(map(_drops, recipe))


def _is_bare(recipe: list[dict]) -> bool:
    """Dropout at p = 0 everywhere is an empty recipe in other words."""
    return all(rule.get("layer") == "Dropout" and not _drops(rule) for rule in recipe)


def _drops(rule: dict) -> bool:
    # A rate that is not a number is a schedule, and a schedule is written to drop something at some time.
    p = rule.get("p")
    return p > 0 if isinstance(p, int | float) else p is not None


def _best(comparison: Comparison, arms: Sequence[str]) -> str | None:
    """The lowest mean loss among the arms with the most finished seeds: one lucky seed must not win."""
    losses = {arm: list(comparison.losses(arm).values()) for arm in arms}
    most = max((len(values) for values in losses.values()), default=0)
    if most == 0:
        return None
    means = {arm: sum(values) / most for arm, values in losses.items() if len(values) == most}
    return min(means, key=means.__getitem__)


def _bare_twin(comparison: Comparison, arm: str | None) -> str | None:
    """The arm with an empty recipe, and no other regularizer that ``arm`` is without."""
    twin = comparison.usable(arm)[0] if arm is not None else None
    for name in comparison.arms:
        run = next(iter(comparison.usable(name)), None)
        if run is None or not _is_bare(run.recipe) or (twin is None and run.penalised):
            continue
        if twin is None or (run.training == twin.training and _model(run) == _model(twin)):
            return name
    return None


def _model(run: Run) -> object:
    return run.section("config").get("model")


def _passes(runs: list[Run]) -> float | None:
    found = [number(run.metrics[-1], "epochs") for run in runs if run.metrics]
    known = [epochs for epochs in found if epochs is not None]
    return sum(known) / len(known) if known else None


def _gap(runs: list[Run]) -> float | None:
    trained = [(run.val_loss, number(run.section("result"), "train_loss")) for run in runs]
    gaps = [val - train for val, train in trained if train is not None]
    return sum(gaps) / len(gaps) if gaps else None


def _context(passes: float | None, gap: float | None, item: str) -> str:
    parts = []
    if passes is not None:
        few = f", fewer than the {FEW_PASSES} at which overfitting shows"
        # A pre-trained model overfits sooner.
        few = few if passes < FEW_PASSES and item == "token" else ""
        parts.append(f"{passes:.1f} passes over the training data{few}")
    if gap is not None:
        side = "above" if gap >= 0 else "below"
        parts.append(f"Without regularizer, validation ends {abs(gap):.3f} nats {side} training")
    return "".join(f" {part}." for part in parts)


def _listed(arms: list[str]) -> str:
    if len(arms) > _NAMED:
        return _count(len(arms), "arm")
    return ", ".join(f"“{arm}”" if "," in arm else arm for arm in arms) or "no arm"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
