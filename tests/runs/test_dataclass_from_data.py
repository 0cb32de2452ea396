"""From plain data to dataclasses: the sentences for what does not fit."""

from dataclasses import dataclass, field

import pytest

from transformer_dropout.errors import InputError
from transformer_dropout.runs.dataclass_from_data import STRICT_KEYS, dataclass_from_data


@dataclass(frozen=True, kw_only=True)
class Inner:
    width: int = 1
    rate: float = 0.5

    def __post_init__(self) -> None:
        if self.rate > 1:
            raise InputError(f"rate is {self.rate}; it is at most 1.")


@dataclass(frozen=True, kw_only=True)
class Outer:
    __pydantic_config__ = STRICT_KEYS

    name: str
    inner: Inner = Inner()
    maybe: Inner | None = None
    numbers: list[int] = field(default_factory=list)


def test_nested_mappings_become_dataclasses():
    data = {"name": "a", "inner": {"rate": 1}, "maybe": {"width": 3}, "numbers": [4]}
    assert dataclass_from_data(Outer, data, {}) == Outer(
        name="a", inner=Inner(rate=1.0), maybe=Inner(width=3), numbers=[4]
    )


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"name": "a", "inner": {"widht": 3}}, "unknown key 'inner.widht'. Did you mean 'width'?"),
        ({"name": "a", "maybe": {"rat": 3}}, "unknown key 'maybe.rat'. Did you mean 'rate'?"),
        ({"name": "a", "zzz": 1}, "unknown key 'zzz'. Known: inner, maybe, name, numbers."),
        ({"inner": {}}, "the key 'name' is missing."),
        ({"name": "a", "inner": {"rate": 2}}, "rate is 2.0; it is at most 1."),
    ],
)
def test_a_problem_is_one_sentence_that_names_the_key(data, sentence):
    with pytest.raises(InputError) as caught:
        dataclass_from_data(Outer, data, {})
    assert str(caught.value) == sentence


def test_a_wrong_type_names_place_key_and_value():
    with pytest.raises(InputError, match=r"^a\.yaml:2:3: inner\.width is 'wide', but it is a whole number"):
        dataclass_from_data(
            Outer, {"name": "a", "inner": {"width": "wide"}}, {("inner", "width"): "a.yaml:2:3"}
        )


def test_an_item_of_a_list_is_named_by_its_number():
    with pytest.raises(InputError, match=r"^numbers\.1 is 'x'"):
        dataclass_from_data(Outer, {"name": "a", "numbers": [1, "x"]}, {})


@dataclass(frozen=True, kw_only=True)
class Loose:
    schedule: float | str | dict[str, float] = 0.0
    sizes: tuple[int, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    inner: list[Inner] = field(default_factory=list)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"schedule": True}, "schedule is True, but it is a number or text or a mapping."),
        ({"schedule": None}, "schedule is None, but it is a number or text or a mapping."),
        ({"schedule": {"a": "1"}}, "schedule.a is '1', but it is a number."),
        ({"sizes": ["4"]}, "sizes.0 is '4', but it is a whole number."),
        ({"sizes": [4, 4.0]}, "sizes.1 is 4.0, but it is a whole number; write 4."),
        ({"files": {"a": 5}}, "files.a is 5, but it is text."),
        ({"inner": [{"width": "3"}]}, "inner.0.width is '3', but it is a whole number."),
    ],
)
def test_nothing_is_turned_into_another_type_at_any_depth(data, sentence):
    with pytest.raises(InputError) as caught:
        dataclass_from_data(Loose, data, {})
    assert str(caught.value) == sentence


def test_a_check_of_several_keys_names_the_place_of_its_own():
    data = {"name": "a", "inner": {"rate": 2}}
    with pytest.raises(InputError, match=r"^a\.yaml:5:1: rate is 2\.0; it is at most 1\.$"):
        dataclass_from_data(Outer, data, {("rate",): "a.yaml:5:1", ("is",): "elsewhere"})


def test_a_dataclass_that_says_nothing_of_unknown_keys_refuses_them():
    @dataclass
    class Mine:
        width: int = 1

    with pytest.raises(InputError, match=r"unknown key 'model\.widht'\. Did you mean 'width'"):
        dataclass_from_data(Mine, {"widht": 3}, {}, ("model",))
    assert dataclass_from_data(Mine, {"width": 3}, {}) == Mine(3)
