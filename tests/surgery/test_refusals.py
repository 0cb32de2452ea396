"""Models that are wrapped, regularized or share their rates, and what is no reason to refuse one."""

import pytest
import torch
from torch import nn

import transformer_dropout as td
from transformer_dropout.errors import InputError
from transformer_dropout.surgery._refusals import (
    handle_of,
    handle_on,
    rate_to_come,
    refuse_second,
    refuse_shared_rates,
    refuse_wrapped,
)


def plain():
    return nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Dropout(0.25), nn.Linear(4, 4)))


class Attention(nn.Module):
    """Holds a rate as a number, beside a dropout with one of its own."""

    def __init__(self):
        super().__init__()
        self.rate, self.drop = 0.25, nn.Dropout(0.5)


def compiled():
    model = plain()
    model[1] = torch.compile(model[1], backend="eager")
    return model


def lazy():
    model = plain()
    model[1].append(nn.LazyLinear(2))
    return model


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (compiled, r"^1 in the model is already compiled"),
        (lambda: torch.compile(plain(), backend="eager"), r"^The model is already compiled"),
        (lambda: nn.Sequential(nn.DataParallel(plain())), r"^0 in the model is wrapped in DataParallel"),
        (
            lambda: nn.Sequential(torch.jit.trace(plain().eval(), torch.ones(1, 4))),
            "^0 in the model is a Torch",
        ),
        (lazy, r"^1\.2 in the model has no sizes yet"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Lazy modules")
def test_what_would_not_see_a_new_layer_is_refused_by_its_path(make, sentence):
    with pytest.raises(InputError, match=sentence):
        refuse_wrapped(make())


def test_a_plain_model_is_not():
    refuse_wrapped(plain())
    refuse_second(plain())


def regularized(*paths):
    model = nn.ModuleDict({path: nn.Linear(4, 4) for path in "abcde"})
    sites = [td.Site(path=path, kind="mlp_output", access="output", width=4) for path in paths]
    return model, td.regularize_(model, td.Recipe([td.Rule("mlp_output", td.Dropout, p=0.1)]), sites=sites)


def test_the_handle_of_a_model_is_found_through_what_wraps_it():
    model, handle = regularized("a")
    assert handle_of(model) is handle_of(nn.Sequential(plain(), model)) is handle_on(model) is handle
    assert handle_on(plain()) is None
    with pytest.raises(InputError, match=r"^This Sequential is not regularized"):
        handle_of(plain())


@pytest.mark.parametrize(
    ("paths", "named"),
    [
        ("ab", r"returned for a/mlp_output, b/mlp_output, or td"),
        ("abc", r"returned for a/mlp_output, b/mlp_output, c/mlp_output, or td"),
        ("abcde", r"returned for a/mlp_output, b/mlp_output, c/mlp_output and 2 more, or td"),
    ],
)
def test_a_second_time_names_the_first(paths, named):
    model, _ = regularized(*paths)
    with pytest.raises(InputError, match=named):
        refuse_second(model)


HELD = td.Site(path="", kind="attention_weights", access="rate", rate="rate")
BESIDE = td.Site(path="drop", kind="mlp_output", access="output", rate="rate", width=4)


def rule(kind, p, **words):
    return td.Rule(kind, td.Dropout, p=p, **words)


@pytest.mark.parametrize(
    ("sites", "rules"),
    [
        ([HELD, BESIDE], {}),
        ([HELD], {HELD: rule("attention_weights", 0.5)}),
        ([BESIDE], {BESIDE: rule("mlp_output", 0.5)}),
        ([HELD, BESIDE], {HELD: rule("attention_weights", 0.0), BESIDE: rule("mlp_output", 0.5)}),
        ([HELD, td.Site(**vars(BESIDE) | {"access": "none"})], {HELD: rule("attention_weights", 0.5)}),
        ([HELD, td.Site(**vars(BESIDE) | {"rate": "drop.p"})], {HELD: rule("attention_weights", 0.5)}),
        ([HELD, td.Site(**vars(BESIDE) | {"rate": None})], {HELD: rule("attention_weights", 0.5)}),
    ],
)
def test_a_rate_of_one_place_alone_may_be_any(sites, rules):
    refuse_shared_rates(Attention(), sites, rules.items())


@pytest.mark.parametrize(
    "rules",
    [
        {HELD: rule("attention_weights", 0.5)},
        {BESIDE: rule("mlp_output", 0.5)},
        {HELD: rule("attention_weights", td.Linear(0.0, 0.1)), BESIDE: rule("mlp_output", 0.5)},
    ],
)
def test_a_rate_that_another_place_must_lose_is_refused(rules):
    sentence = (
        r"^rate is the rate of  \(attention_weights\) and of drop \(mlp_output\) too.*attention_weights the"
    )
    with pytest.raises(InputError, match=sentence):
        refuse_shared_rates(Attention(), [BESIDE, HELD], rules.items())


def test_the_largest_rate_to_come_is_the_rules_or_the_models_own():
    model = Attention()
    assert rate_to_come(model, HELD, None) == 0.25
    assert rate_to_come(model, td.Site(path="drop", kind="mlp_output", access="output"), None) == 0.0
    assert rate_to_come(model, HELD, rule("attention_weights", td.Linear(0.4, 0.1))) == 0.4
    deep = td.Site(path="", kind="attention_weights", access="rate", rate="rate", block=1, n_blocks=3)
    assert rate_to_come(model, deep, rule("attention_weights", 0.4, depth=td.Linear(0.0, 1.0))) == 0.2
    assert rate_to_come(model, HELD, td.Rule("attention_weights", td.SparseReLU)) == 1.0
