"""The table of a fine-tuning: accuracies and losses, each with its paired difference to the reference."""

from pathlib import Path

from ...compare.records import Comparison, Run, load_comparison, number
from ...compare.statistics import Difference, Estimate, differences_to, mean_interval
from ...compare.table import NOTHING, Table
from ...compare.verdicts import LEVEL, reference_arm
from ...runs.files import write_atomically

NORMAL_95 = 1.96


def accuracy_table(comparison: Comparison) -> Table:
    """Return one row an arm: test and validation accuracy, losses, and differences paired by seed.

    Args:
        comparison: of runs that recorded accuracies.

    Raises:
        InputError: when the reference that it names is none of the arms.
    """
    reference = reference_arm(comparison).name
    accuracy = paired(comparison, reference, "test_accuracy", 100.0)
    loss = paired(comparison, reference, "val_loss", 1.0)
    rows = tuple(
        (
            arm,
            str(len(comparison.usable(arm))),
            mean_text(comparison, arm, "test_accuracy", 100.0, 2),
            difference_cell(accuracy.get(arm), 2, arm == reference),
            verdict(accuracy.get(arm), arm == reference),
            mean_text(comparison, arm, "val_accuracy", 100.0, 2),
            mean_text(comparison, arm, "train_loss", 1.0, 3),
            mean_text(comparison, arm, "val_loss", 1.0, 3),
            difference_cell(loss.get(arm), 3, arm == reference),
        )
        for arm in comparison.arms
    )
    columns = (
        "arm",
        "seeds",
        "test accuracy % ± 95 %",
        f"minus {reference}, points [95 %]",
        "verdict",
        "validation accuracy %",
        "train loss",
        "val loss ± 95 %",
        f"minus {reference}, nats [95 %]",
    )
    return Table(columns=columns, rows=rows)


def write_accuracy(folder: Path) -> Path:
    """Write ``accuracy.md`` into the folder of a fine-tuning, finished or not; return its path.

    Args:
        folder: a folder written by ``dropout finetune``.

    Raises:
        InputError: when it is none, or its runs do not compare.
    """
    comparison = load_comparison(folder)
    path = folder / "accuracy.md"
    write_atomically(path, f"{accuracy_table(comparison).markdown()}\n{explanation(comparison)}\n")
    return path


def explanation(comparison: Comparison) -> str:
    """Return what a reader has to know about the table."""
    text = (
        "Mean over seeds ± half the 95 % t-interval, at the last step. Differences are paired by seed, with "
        "their plain 95 % t-interval; a verdict asks for p below 0.05 in the paired t-test of test accuracy "
        "after Holm's correction over the arms. Losses are in nats a sentence, measured in evaluation mode."
    )
    runs = [run for arm in comparison.arms for run in comparison.usable(arm)]
    size = next((number(run.section("data").get("test") or {}, "documents") for run in runs), None)
    if not size:
        return text
    accuracies = [accuracy for run in runs if (accuracy := value(run, "test_accuracy")) is not None]
    share = sum(accuracies) / max(1, len(accuracies))
    width = 100 * NORMAL_95 * (share * (1 - share) / size) ** 0.5
    return (
        f"{text} The intervals hold the spread between seeds. The {size:,.0f} test sentences are the same "
        f"for all; other ones would move every accuracy by about ± {width:.1f} points."
    )


def paired(comparison: Comparison, reference: str, key: str, scale: float) -> dict[str, Difference]:
    """Return each other arm's difference to the reference in one number of the result."""
    found = {arm: by_seed(comparison, arm, key, scale) for arm in comparison.arms}
    own = found.pop(reference)
    return differences_to(own, found)


def by_seed(comparison: Comparison, arm: str, key: str, scale: float) -> dict[int, float]:
    """Return one number of the result by seed."""
    values = {run.seed: value(run, key) for run in comparison.usable(arm)}
    return {seed: scale * found for seed, found in values.items() if found is not None}


def value(run: Run, key: str) -> float | None:
    """Return one number of a run's result."""
    return number(run.section("result"), key)


def mean_text(comparison: Comparison, arm: str, key: str, scale: float, digits: int) -> str:
    """Return ``84.31 ± 0.52``."""
    values = list(by_seed(comparison, arm, key, scale).values())
    if not values:
        return NOTHING
    estimate = mean_interval(values)
    half = estimate.half_width
    return f"{estimate.mean:.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")


def difference_cell(difference: Difference | None, digits: int, is_reference: bool) -> str:
    """Return ``+0.31 [-0.12, +0.74]``."""
    if difference is None:
        return "reference" if is_reference else NOTHING
    estimate: Estimate = difference.estimate
    text = f"{estimate.mean:+.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{estimate.low:+.{digits}f}, {estimate.high:+.{digits}f}]"


def verdict(difference: Difference | None, is_reference: bool) -> str:
    """Return what is shown about an arm's test accuracy."""
    if is_reference:
        return "reference"
    if difference is None or difference.holm_p is None:
        return "not judged"
    if difference.holm_p >= LEVEL:
        return f"no difference shown (p = {difference.holm_p:.2f})"
    return f"{'better' if difference.estimate.mean > 0 else 'worse'} (p = {difference.holm_p:.3f})"
