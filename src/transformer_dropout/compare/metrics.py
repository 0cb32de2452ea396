"""How a metric is written: its unit, its scale, and which way is better."""

from ..runs.task import Metric
from .statistics import Estimate

# Units of a mean over items: they are nats per token, nats per sentence.
_PER_ITEM = ("nats", "bits")


def factor(metric: Metric) -> float:
    """Return what a recorded number is multiplied with to be shown: 100 for a share."""
    return 100.0 if metric.unit == "share" else 1.0


def value_unit(metric: Metric, item: str) -> str:
    """Return the unit of a value as it is shown: ``nats per token``, ``%``, or nothing."""
    if metric.unit == "share":
        return "%"
    return f"{metric.unit} per {item}" if metric.unit in _PER_ITEM and item else metric.unit


def difference_unit(metric: Metric) -> str:
    """Return the unit of a difference as it is shown: ``nats``, ``points``, or nothing."""
    return "points" if metric.unit == "share" else metric.unit


def with_unit(text: str, unit: str) -> str:
    """Return a number with its unit, if it has one."""
    return f"{text} {unit}" if unit else text


def improvement(metric: Metric, difference: float) -> float:
    """Return how much better a difference makes it, above 0 for better."""
    return -difference if metric.better == "lower" else difference


def in_shown_unit(metric: Metric, estimate: Estimate) -> Estimate:
    """Return an estimate in the unit that is shown."""
    return estimate.times(factor(metric))


def superlative(metric: Metric) -> str:
    """Return ``lowest`` or ``highest``, whichever is best."""
    return "lowest" if metric.better == "lower" else "highest"
