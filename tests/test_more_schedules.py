import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from transformer_dropout.errors import InputError
from transformer_dropout.layers import Dropout
from transformer_dropout.recipe import Recipe, Rule
from transformer_dropout.schedule_data import schedule_from_data, schedule_to_data
from transformer_dropout.schedules import (
    Constant,
    Cosine,
    Curriculum,
    Early,
    Exponential,
    Feedback,
    Late,
    Linear,
    Piecewise,
    as_schedule,
    parse_schedule,
)
from transformer_dropout.surgery.regularize import regularize_
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig

values = st.floats(-10, 10)
rates = progresses = st.floats(0, 1)
some = st.floats(0.01, 0.99)


@st.composite
def piecewise(draw):
    places = sorted(draw(st.lists(progresses, min_size=2, max_size=6)))
    return Piecewise(tuple((place, draw(values)) for place in places))


switches = st.builds(Early, values, some, st.booleans()) | st.builds(Late, values, some, st.booleans())
curricula = st.builds(Curriculum, values, st.floats(0.01, 1000))
text_parts = st.lists(st.sampled_from([*"0123456789.,@-e ", "nan", "inf"]), max_size=20)


@given(piecewise(), progresses)
def test_a_piecewise_schedule_stays_between_its_lowest_and_highest_point(schedule, t):
    found = [value for _, value in schedule.points]
    assert min(found) <= schedule(t) <= max(found)


smooth = st.builds(Linear, values, values) | st.builds(Cosine, values, values)
smooth |= st.builds(Exponential, values, values, st.floats(0.1, 5), st.floats(0.1, 2))


@given(piecewise() | switches | curricula | smooth, progresses)
def test_no_value_lies_outside_the_bounds(schedule, t):
    low, high = schedule.bounds()
    assert low - 1e-9 <= schedule(t) <= high + 1e-9


@given(switches | curricula, progresses)
def test_the_others_stay_between_zero_and_p(schedule, t):
    assert min(0, schedule.p) <= schedule(t) <= max(0, schedule.p)


@given(piecewise())
def test_it_goes_through_its_points_and_at_a_step_through_the_later_one(schedule):
    last = dict(schedule.points)
    for place, value in last.items():
        assert schedule(place) == pytest.approx(value)


@given(values, values, progresses)
def test_two_points_are_a_straight_line(start, end, t):
    schedule = Piecewise(((0, start), (1, end)))
    assert schedule(t) == pytest.approx(Linear(start, end)(t))


@given(values, progresses)
def test_a_level_line_is_level_to_the_last_bit(value, t):
    assert Piecewise(((0, value), (1, value)))(t) == value


def test_the_schedule_of_the_docstring():
    schedule = parse_schedule("0,0@0.2,0.3@0.5,0")
    assert schedule == Piecewise(((0, 0), (0.2, 0), (0.5, 0.3), (1, 0)))
    expected = {0: 0, 0.1: 0, 0.2: 0, 0.35: 0.15, 0.5: 0.3, 0.75: 0.15, 1: 0}
    assert {t: schedule(t) for t in expected} == pytest.approx(expected)


def test_first_and_last_point_may_lie_inside_and_hold_outwards():
    schedule = parse_schedule(" 0.3 @ 0.2 , 1e-1@0.6 ")
    assert [schedule(t) for t in (0, 0.2, 0.4, 0.6, 1)] == pytest.approx([0.3, 0.3, 0.2, 0.1, 0.1])


def test_two_points_at_one_progress_are_a_step():
    schedule = parse_schedule("0,0@0.5,0.2@0.5,0.2")
    assert [schedule(t) for t in (0, 0.4999, 0.5, 1)] == [0, 0, 0.2, 0.2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.1", "at least two points"),
        ("", "is not VALUE@PROGRESS in numbers"),
        ("0,0.3,0", "'0.3' lies between the first and the last, so it needs its progress"),
        ("0,0.3@0.6,0.1@0.5,0", "0.6, 0.5, 1.0, but progress runs from 0 to 1 and never back"),
        ("0,0.3@1.5", "0.0, 1.5, but progress"),
        ("0@-0.1,0", "-0.1, 1.0, but progress"),
        ("0,0.3@nan,0", "but progress runs"),
        ("0,inf", "not finite"),
        ("0,0.3@", "'0.3@' is not VALUE@PROGRESS"),
        ("0,@0.3,1", "'@0.3' is not VALUE@PROGRESS"),
        ("0,0.3@0.2@0.3,1", "is not VALUE@PROGRESS"),
        ("high,0", "'high' is not VALUE@PROGRESS"),
    ],
)
def test_wrong_text_is_named_with_an_example(text, message):
    with pytest.raises(InputError, match=message) as caught:
        schedule_from_data(text, "p of the rule")
    assert str(caught.value).startswith(f"p of the rule is {text!r}; write a number or a schedule such as")
    assert "'0,0@0.2,0.3@0.5,0'" in str(caught.value)


@given(text_parts.map("".join))
def test_any_text_is_a_finite_schedule_or_an_input_error(text):
    try:
        schedule = parse_schedule(text)
    except InputError:
        return
    assert all(math.isfinite(schedule(t)) for t in (0, 0.3, 1))


@given(piecewise() | switches | curricula)
def test_the_yaml_form_gives_the_same_schedule_back(schedule):
    text = yaml.safe_dump({"p": schedule_to_data(schedule)})
    assert schedule_from_data(yaml.safe_load(text)["p"], "p") == schedule


def test_the_yaml_forms():
    assert schedule_to_data(Piecewise(((0, 0.3), (0.5, 0)))) == "0.3@0.0,0.0@0.5"
    assert schedule_to_data(Curriculum(0.1)) == {"curriculum": {"p": 0.1, "gamma": 10.0}}
    assert schedule_from_data({"early": {"p": 0.1, "until": 0.2}}, "p") == Early(0.1, 0.2)
    assert schedule_from_data({"late": {"p": 0.1, "start": 0.2, "linear": True}}, "p") == Late(0.1, 0.2, True)
    with pytest.raises(InputError, match="takes the numbers p, until, linear"):
        schedule_from_data({"early": {"p": 0.1}}, "p")


def test_a_text_is_a_schedule_wherever_one_is_taken():
    assert as_schedule("0,0.3") == Piecewise(((0, 0), (1, 0.3)))
    assert as_schedule(0.3) == Constant(0.3)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (((0, 1),), "at least two points"),
        (((0.5, 1), (0.4, 1)), "never back"),
        (((0, 1), (1, math.nan)), "not finite"),
    ],
)
def test_points_are_checked_without_text_too(points, message):
    with pytest.raises(InputError, match=message):
        Piecewise(points)


@given(rates, some, progresses)
def test_early_and_late_divide_training_between_them(p, place, t):
    early, late = Early(p, place), Late(p, place)
    assert early(t) + late(t) == p
    assert (early(t) == p) == (t < place) or p == 0


@given(rates, some, progresses)
def test_the_linear_forms_are_straight_lines_to_and_from_zero(p, place, t):
    assert Early(p, place, linear=True)(t) == pytest.approx(parse_schedule(f"{p!r},0@{place!r}")(t))
    assert Late(p, place, linear=True)(t) == pytest.approx(parse_schedule(f"0@{place!r},{p!r}")(t))


@given(rates, st.floats(0.1, 100), progresses)
def test_a_curriculum_is_the_papers_formula(p, gamma, t):
    kept = 1 - p
    retained = (1 - kept) * math.exp(-gamma * t) + kept  # the paper's probability of keeping
    assert Curriculum(p, gamma)(t) == pytest.approx(1 - retained, abs=1e-12)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Early(0.1, 0), "above 0 and at most 1, not at until=0"),
        (lambda: Early(0.1, 1.1), "until=1.1"),
        (lambda: Late(0.1, 1), "below 1, not at start=1"),
        (lambda: Late(0.1, -0.1), "start=-0.1"),
        (lambda: Curriculum(0.1, 0), "gamma above 0, not 0"),
        (lambda: Curriculum(0.1, math.nan), "gamma above 0, not nan"),
        (lambda: Feedback(low=0.4, high=0.2), "low=0.4 and high=0.2"),
        (lambda: Feedback(high=1.5), "high=1.5"),
        (lambda: Feedback(gain=0), "gain above 0, not 0"),
        (lambda: Feedback(gain=math.inf), "gain above 0, not inf"),
        (lambda: Feedback(gap=math.nan), "finite gap, not nan"),
    ],
)
def test_wrong_numbers_are_refused(build, message):
    with pytest.raises(InputError, match=message):
        build()


feedbacks = st.builds(
    lambda gap, gain, bounds: Feedback(gap=gap, gain=gain, low=min(bounds), high=max(bounds)),
    st.floats(-5, 5),
    st.floats(1e-6, 1e6),
    st.tuples(rates, rates),
)
losses = st.floats(allow_nan=True, allow_infinity=True)


@given(feedbacks, rates, losses, losses)
def test_feedback_never_leaves_its_bounds_whatever_the_losses(feedback, current, train, val):
    assert feedback.low <= feedback.next_rate(current, train, val) <= feedback.high


def test_feedback_moves_by_the_gain_times_the_difference():
    feedback = Feedback(gap=0.2, gain=0.1)
    assert feedback.next_rate(0.1, train_loss=1.0, val_loss=1.7) == pytest.approx(0.15)
    assert feedback.next_rate(0.1, train_loss=1.0, val_loss=1.2) == pytest.approx(0.1)
    assert feedback.next_rate(0.1, train_loss=1.0, val_loss=0.9) == pytest.approx(0.07)
    assert feedback.next_rate(0.1, train_loss=1.0, val_loss=9.0) == 0.5


@pytest.mark.parametrize("val", [math.nan, math.inf])
def test_a_loss_that_is_no_number_leaves_the_rate(val):
    assert Feedback().next_rate(0.1, val, val) == 0.1


@given(st.floats(0.3, 3), rates)
def test_feedback_settles_where_the_gap_is_the_one_asked_for(slope, start):
    # A model whose gap shrinks as the rate grows: 0.4 at rate 0, by `slope` for each unit of rate.
    feedback, rate = Feedback(gap=0.3, gain=0.2, low=0.0, high=0.9), start
    for _ in range(200):
        rate = feedback.next_rate(rate, 1.0, 1.4 - slope * rate)
    assert 0.4 - slope * rate == pytest.approx(0.3, abs=1e-3)


def test_feedback_drives_a_handle_and_the_rate_stays_while_progress_goes_on():
    model = Decoder(19, DecoderConfig(width=8, heads=2, blocks=2, context=6))
    reg, rate = regularize_(model, Recipe([Rule("mlp_output", Dropout, p=0.1)])), 0.1
    for progress, val_loss in ((0.2, 2.0), (0.4, 3.0)):
        reg.set_progress(progress)
        rate = Feedback().next_rate(rate, 1.0, val_loss)
        reg.update({"mlp_output": rate})
    reg.set_progress(0.6)
    assert [placed.layer.p for placed in reg.placed] == pytest.approx([0.4, 0.4])


def test_the_ends_of_what_is_allowed():
    assert Early(0.3, 1)(0.9) == Late(0.3, 0)(0.0) == 0.3
    assert Feedback(high=1).next_rate(0.9, 0.0, 5.0) == 1
    with pytest.raises(InputError, match=r"^The schedule "):
        parse_schedule("0,0@2")
    assert Exponential(0.0, 1.0, rate=700)(1.0) == 1
    for ends in ((math.nan, 0.2), (0.2, math.nan)):
        assert all(map(math.isnan, Linear(*ends).bounds()))
