import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_dropout.errors import InputError
from transformer_dropout.schedule_data import schedule_from_data, schedule_to_data
from transformer_dropout.schedules import (
    Constant,
    Cosine,
    Exponential,
    Linear,
    Schedule,
    as_schedule,
)

values = st.floats(-10, 10)
progresses = st.floats(0, 1)
exponents = st.floats(0.1, 20) | st.floats(-20, -0.1)
straight = st.builds(Linear, values, values) | st.builds(Cosine, values, values)
bent = st.builds(Exponential, values, values, exponents, st.floats(0.05, 3))
schedules = st.builds(Constant, values) | straight | bent


def close(a, b):
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)


@settings(deadline=None)
@given(straight | st.builds(Exponential, values, values, exponents))
def test_a_schedule_runs_from_start_to_end(schedule):
    assert close(schedule(0.0), schedule.start)
    assert close(schedule(1.0), schedule.end)


@settings(deadline=None)
@given(values, progresses)
def test_a_constant_is_its_value_everywhere(value, progress):
    assert Constant(value)(progress) == value


@settings(deadline=None)
@given(straight | bent, progresses, progresses)
def test_a_schedule_moves_in_one_direction(schedule, a, b):
    earlier, later = schedule(min(a, b)), schedule(max(a, b))
    if schedule.end >= schedule.start:
        assert later >= earlier - 1e-9
    else:
        assert later <= earlier + 1e-9


@settings(deadline=None)
@given(straight | bent, progresses)
def test_a_schedule_stays_between_its_ends(schedule, progress):
    low, high = sorted((schedule.start, schedule.end))
    assert low - 1e-9 <= schedule(progress) <= high + 1e-9


@settings(deadline=None)
@given(values, values, progresses)
def test_the_formulas(start, end, t):
    assert close(Linear(start, end)(t), (1 - t) * start + t * end)
    half = math.cos(math.pi * t / 2) ** 2
    assert close(Cosine(start, end)(t), half * start + (1 - half) * end)
    bent_share = (math.exp(3 * t) - 1) / (math.exp(3) - 1)
    assert close(Exponential(start, end, rate=3)(t), start + (end - start) * bent_share)


@settings(deadline=None)
@given(st.floats(0.05, 0.95), st.floats(0.5, 20))
def test_a_positive_exponent_changes_little_early_and_much_late(t, rate):
    assert Exponential(0, 1, rate)(t) < t < Exponential(0, 1, -rate)(t)


def test_an_exponential_moves_less_in_its_first_tenth_than_in_its_last():
    rising = Exponential(0.0, 0.1)
    assert rising(0.1) - rising(0.0) < (rising(1.0) - rising(0.9)) / 50
    falling = Exponential(0.3, 0.0, rate=-5)
    assert falling(0.0) - falling(0.1) > 50 * (falling(0.9) - falling(1.0))


@settings(deadline=None)
@given(exponents, st.floats(0.05, 1), progresses)
def test_an_exponential_reaches_its_end_at_until_and_stays(rate, until, t):
    schedule = Exponential(2.0, 5.0, rate, until)
    assert close(schedule(until), 5.0)
    assert close(schedule(until + (1 - until) * t), 5.0)
    assert close(schedule(until * t), Exponential(2.0, 5.0, rate)(t))


def test_an_exponential_with_until_beyond_one_does_not_reach_its_end():
    assert Exponential(0, 1, rate=2, until=2)(1.0) == pytest.approx(math.expm1(1) / math.expm1(2))


@settings(deadline=None)
@given(schedules)
def test_the_yaml_form_gives_the_same_schedule_back(schedule):
    text = yaml.safe_dump(schedule_to_data(schedule))
    assert schedule_from_data(yaml.safe_load(text), "p") == schedule


def test_the_yaml_form_is_a_number_or_one_named_mapping():
    assert schedule_to_data(Constant(0.1)) == 0.1
    assert schedule_to_data(Linear(0.0, 0.1)) == {"linear": {"start": 0.0, "end": 0.1}}
    assert schedule_from_data({"exponential": {"start": 0, "end": 1}}, "p") == Exponential(0, 1, 5.0, 1.0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("0.1", "p is '0.1'; write a number or a schedule"),
        (True, "p is True"),
        ([0.1], "write a number"),
        ({}, "write a number"),
        ({"linear": {"start": 0, "end": 1}, "cosine": {}}, "write a number"),
        ({"liner": {"start": 0, "end": 1}}, "p has the unknown schedule 'liner'. Did you mean 'linear'"),
        ({"xyz": {}}, "Known: constant, cosine, curriculum, early, exponential, late, linear"),
        ({"linear": {"strat": 0, "end": 1}}, "has no 'strat'. Did you mean 'start'"),
        ({"linear": {"start": 0}}, "takes the numbers start, end"),
        ({"linear": {"start": "0", "end": 1}}, "takes the numbers start, end"),
        ({"linear": 0.3}, "takes the numbers start, end"),
        (
            {"exponential": {"start": 0, "end": 1, "rate": 0}},
            "rate other than 0; for a straight line use Linear",
        ),
        ({"exponential": {"start": 0, "end": 1, "until": 0}}, "until above 0, not 0"),
    ],
)
def test_wrong_data_is_named_with_what_to_write_instead(data, message):
    with pytest.raises(InputError, match=message):
        schedule_from_data(data, "p")


def test_a_number_becomes_a_constant_and_a_schedule_stays():
    assert as_schedule(1) == Constant(1.0)
    schedule = Linear(0, 1)
    assert as_schedule(schedule) is schedule


def test_schedules_are_values():
    assert {Linear(0, 1), Linear(0, 1), Cosine(0, 1)} == {Linear(0, 1), Cosine(0, 1)}
    with pytest.raises(AttributeError):
        Linear(0, 1).end = 2
    with pytest.raises(NotImplementedError):
        Schedule()(0.5)


@pytest.mark.parametrize("schedule", [Linear(0.1, math.nan), Linear(math.nan, 0.1), Cosine(0.1, math.nan)])
def test_what_is_no_number_at_an_end_has_no_bounds(schedule):
    assert all(map(math.isnan, schedule.bounds()))
