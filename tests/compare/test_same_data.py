"""Two whose data differ are named, with what differs; what a record lacks is not compared."""

import pytest

from transformer_dropout.compare.same_data import SAME_DATA, other_data


@pytest.mark.parametrize("key", SAME_DATA)
def test_the_two_that_differ_are_named_also_across_one_that_says_nothing(key):
    assert other_data([("a", {key: 1}), ("b", {}), ("c", {key: 2})]) == ("a", "c", key)


def test_the_same_data_and_none_at_all_are_no_difference():
    same = dict.fromkeys(SAME_DATA, "one")
    assert other_data({"a": same, "b": {**same, "path": "elsewhere"}, "c": {}}.items()) is None
    assert other_data([]) is None
