"""How a metric is written."""

import pytest

from transformer_dropout.compare.metrics import difference_unit, improvement, superlative, value_unit
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
