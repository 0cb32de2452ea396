"""How a metric is written."""

import pytest

from transformer_dropout.compare.metrics import (
    difference_unit,
    factor,
    improvement,
    in_shown_unit,
    superlative,
    value_unit,
    with_unit,
)
from transformer_dropout.compare.statistics import Estimate
from transformer_dropout.runs.task import ACCURACY, LOSS, Metric


@pytest.mark.parametrize(
    ("metric", "item", "value", "difference"),
    [
        (LOSS, "token", "nats per token", "nats"),
        (LOSS, "image", "nats per image", "nats"),
        (LOSS, "", "nats", "nats"),
        (ACCURACY, "image", "%", "points"),
        (Metric(name="loss", unit="variances"), "row", "variances", "variances"),
        (Metric(name="r2", better="higher"), "row", "", ""),
    ],
)
def test_units(metric, item, value, difference):
    assert (value_unit(metric, item), difference_unit(metric)) == (value, difference)


def test_which_way_is_better():
    assert (improvement(LOSS, -0.1), improvement(ACCURACY, -0.1)) == (0.1, -0.1)
    assert (superlative(LOSS), superlative(ACCURACY)) == ("lowest", "highest")


def test_a_share_is_shown_in_percent_with_its_interval():
    estimate = Estimate(mean=0.5, low=0.25, high=0.75, n=3)
    assert (factor(ACCURACY), factor(LOSS)) == (100.0, 1.0)
    assert in_shown_unit(LOSS, estimate) == estimate
    assert in_shown_unit(ACCURACY, estimate) == Estimate(mean=50.0, low=25.0, high=75.0, n=3)
    assert (with_unit("3", "%"), with_unit("3", "")) == ("3 %", "3")
