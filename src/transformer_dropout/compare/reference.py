"""Which arm the others are compared with, and which arms stand for dropout and for no regularizer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import InputError, did_you_mean
from .metrics import improvement, superlative
from .records import Comparison, Run


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The arm every other arm is compared with, and why it is that one."""

    name: str
    why: str


def reference_arm(comparison: Comparison) -> Reference:
    """Return the arm to compare with: the one asked for, else the best plain dropout, else no regularizer.

    Best plain dropout: among arms whose recipe is only ``Dropout`` with some p above 0, those with the lowest
    weight decay; of these the best mean on validation over the most finished seeds. Picking the best of
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
    dropout = best_arm(comparison, plain_dropout_arms(comparison))
    if dropout is not None:
        best = f"{superlative(comparison.metric)} validation {comparison.metric.name}"
        return Reference(name=dropout, why=f"it is the plain dropout with the {best}")
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


def plain_dropout_arms(comparison: Comparison) -> list[str]:
    """Return the arms of plain dropout at the lowest weight decay at which there is one."""
    runs = {arm: comparison.usable(arm)[0] for arm in comparison.arms if comparison.usable(arm)}
    plain = {a: run for a, run in runs.items() if _is_plain_dropout(run.recipe) and not run.penalised}
    decays = {arm: run.weight_decay for arm, run in plain.items()}
    lowest = min(decays.values(), default=0.0)
    return [arm for arm, decay in decays.items() if decay == lowest]


def best_arm(
    comparison: Comparison, arms: Sequence[str], values: Callable[[str], dict[int, float]] | None = None
) -> str | None:
    """Return the arm with the best mean among those with the most finished seeds: a lucky seed must not win.

    Args:
        comparison: the runs.
        arms: which arms to choose from.
        values: gives the numbers of an arm; None for those at the end of its runs.
    """
    found = {arm: list((values or comparison.values)(arm).values()) for arm in arms}
    most = max((len(numbers) for numbers in found.values()), default=0)
    if most == 0:
        return None
    means = {arm: sum(numbers) / most for arm, numbers in found.items() if len(numbers) == most}
    return max(means, key=lambda arm: improvement(comparison.metric, means[arm]))


def bare_twin(comparison: Comparison, arm: str | None) -> str | None:
    """Return the arm with an empty recipe, and no other regularizer that ``arm`` is without."""
    twin = comparison.usable(arm)[0] if arm is not None and comparison.usable(arm) else None
    for name in comparison.arms:
        run = next(iter(comparison.usable(name)), None)
        if run is None or not _is_bare(run.recipe) or (twin is None and run.penalised):
            continue
        if twin is None or (run.training == twin.training and _model(run) == _model(twin)):
            return name
    return None


def _is_plain_dropout(recipe: list[dict]) -> bool:
    return all(rule.get("layer") == "Dropout" for rule in recipe) and any(map(_drops, recipe))


def _is_bare(recipe: list[dict]) -> bool:
    """Dropout at p = 0 everywhere is an empty recipe in other words."""
    return all(rule.get("layer") == "Dropout" and not _drops(rule) for rule in recipe)


def _drops(rule: dict) -> bool:
    # A rate that is not a number is a schedule, and a schedule is written to drop something at some time.
    p = rule.get("p")
    return p > 0 if isinstance(p, int | float) else p is not None


def _model(run: Run) -> object:
    return run.section("config").get("model")
