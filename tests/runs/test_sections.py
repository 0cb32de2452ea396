"""Plain data of a config, in which newer keys at their default are left out."""

from dataclasses import dataclass, field

from transformer_dropout.runs.sections import NEWER, to_plain


@dataclass
class Inner:
    p: float = 0.1
    more: int = field(default=0, metadata=NEWER)
    told: int = field(default=0, metadata={"newer": False})


@dataclass
class Outer:
    inner: Inner
    listed: tuple
    named: dict


def test_a_newer_key_stands_there_only_where_it_is_set():
    plain = to_plain(Outer(inner=Inner(), listed=(Inner(more=2), "a"), named={"x": Inner(p=0.0)}))
    assert plain == {
        "inner": {"p": 0.1, "told": 0},
        "listed": [{"p": 0.1, "more": 2, "told": 0}, "a"],
        "named": {"x": {"p": 0.0, "told": 0}},
    }


def test_anything_else_is_left_as_it_is():
    assert to_plain(Inner) is Inner
    assert to_plain([1, None, "a", [True]]) == [1, None, "a", [True]]
