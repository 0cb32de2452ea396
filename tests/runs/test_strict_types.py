"""Values of exactly the types that are asked for, at any depth, each refused by its key."""

import math
import re
from dataclasses import dataclass, field
from typing import Any

import pytest

from transformer_dropout.errors import InputError
from transformer_dropout.runs.strict_types import at, choices_of, fits, refuse_loose


@dataclass
class Inner:
    share: float = 0.5
    words: list[str] = field(default_factory=list)


@dataclass
class Outer:
    steps: int = 1
    lr: float | str | dict[str, Any] = 0.1
    flag: bool = False
    name: str | None = None
    inner: Inner | None = None
    many: list[Inner] = field(default_factory=list)
    pair: tuple[int, ...] = ()
    by_name: dict[str, Inner] = field(default_factory=dict)
    anything: Any = None


@pytest.mark.parametrize(
    "data",
    [
        {"steps": 3, "lr": 1, "flag": True, "name": None},
        {"lr": "0,1", "name": "a", "inner": None},
        {"lr": {"linear": {"start": "x"}}, "inner": {"share": 1, "words": ["a", "b"]}},
        {"many": [{"share": 0.1}, {}], "pair": [1, 2], "by_name": {"a": {"share": 0.1}}},
        {"anything": ["3", True, None], "unknown": "3"},
        # What a key cannot be at all is refused by the reader that comes after.
        {"steps": [1]},
        {"steps": {"a": 1}},
        [1, "a"],
        "text",
    ],
)
def test_what_fits_is_let_through(data):
    refuse_loose(Outer, data, {}, ())


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"steps": "3"}, "steps is '3', but it is a whole number."),
        ({"steps": True}, "steps is True, but it is a whole number."),
        ({"steps": 2.0}, "steps is 2.0, but it is a whole number; write 2."),
        ({"steps": 2.5}, "steps is 2.5, but it is a whole number."),
        ({"steps": None}, "steps is None, but it is a whole number."),
        ({"flag": 1}, "flag is 1, but it is true or false."),
        ({"flag": "yes"}, "flag is 'yes', but it is true or false."),
        ({"name": 3}, "name is 3, but it is text or null."),
        ({"lr": True}, "lr is True, but it is a number or text or a mapping."),
        ({"inner": {"share": "0.5"}}, "inner.share is '0.5', but it is a number."),
        ({"inner": {"words": ["a", 1]}}, "inner.words.1 is 1, but it is text."),
        ({"many": [{"share": 0.1}, {"share": False}]}, "many.1.share is False, but it is a number."),
        ({"pair": [1, "2"]}, "pair.1 is '2', but it is a whole number."),
        ({"by_name": {"a": {"share": None}}}, "by_name.a.share is None, but it is a number."),
        ({"inner": {"share": math.nan}}, "inner.share is nan, but every number here is finite."),
        ({"unknown": {"a": [1.0, -math.inf]}}, "unknown.a.1 is -inf, but every number here is finite."),
        ([math.inf], "0 is inf, but every number here is finite."),
        ({"name": "a\0b"}, r"name is 'a\x00b', which has a NUL in it; take it out."),
        ({"name": "x" * 50 + "\0"}, f"name is '{'x' * 40}', which has a NUL in it; take it out."),
    ],
)
def test_what_would_be_turned_into_another_type_is_refused_by_its_key(data, sentence):
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        refuse_loose(Outer, data, {}, ())


@pytest.mark.parametrize("data", [{"steps": "3"}, {"steps": math.nan}])
def test_a_key_is_named_with_where_it_stands(data):
    with pytest.raises(InputError, match=r"^training\.steps is "):
        refuse_loose(Outer, data, {("steps",): "elsewhere"}, ("training",))
    with pytest.raises(InputError, match=r"^a\.yaml:3: training\.steps is "):
        refuse_loose(Outer, data, {("training", "steps"): "a.yaml:3"}, ("training",))
    assert at(("a", 0), {}) == "a.0"


def test_a_whole_number_stands_for_any_and_a_truth_value_for_none():
    assert fits(1, (float,)) and fits(True, (bool, int)) and fits(None, (int, type(None)))
    assert not fits(True, (int, float)) and not fits(1.0, (int,)) and not fits("1", (int,))
    assert choices_of(int | None) == (int, type(None)) and choices_of(list[int]) == (list[int],)
