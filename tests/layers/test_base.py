"""What all layers share: promises, the slot for a penalty, and a rate as a number and as a tensor."""

import copy

import pytest
import torch
from torch import nn

import transformer_dropout as td
from transformer_dropout.errors import InputError
from transformer_dropout.layers import DropoutLayer, RateLayer
from transformer_dropout.layers._base import check_probability


class Plain(DropoutLayer):
    """A layer that says nothing of itself."""

    def forward(self, x):
        return x


class Inner(RateLayer):
    """A layer with a rate and a module inside it."""

    def __init__(self, p=0.5):
        super().__init__(p)
        self.linear = nn.Linear(2, 2)


def site(**facts):
    return td.Site(**({"path": "a.b", "kind": "mlp_output", "access": "output", "width": 6} | facts))


def test_a_layer_that_says_nothing_of_itself_promises_nothing():
    layer = Plain()
    assert (layer.acts_on, layer.shared_source, layer.pending_penalty, layer.observer) == ("any", *[None] * 3)
    assert not any(
        getattr(layer, name)
        for name in (
            *("looks_at_tokens", "tells_samples_apart", "computes_mlp", "has_penalty", "in_plain_mlp"),
            *("is_plain_dropout", "silent_in_evaluation", "stored_without_gradient"),
        )
    )
    assert (layer.probability(), layer.token_gate(), layer.set_progress(0.5)) == (None, None, None)


def test_a_promise_that_is_made_anew_with_the_forward_holds():
    class Silent(td.Dropout):
        silent_in_evaluation = True

        def forward(self, x):
            return x

    assert (Silent.is_plain_dropout, Silent.silent_in_evaluation) == (False, True)


def test_the_slot_holds_the_last_penalty_until_it_is_taken():
    layer, weight = Plain(), torch.ones((), requires_grad=True)
    layer.store_penalty(2 * weight)
    layer.store_penalty(3 * weight)
    assert layer.take_penalty().item() == 3.0
    with pytest.raises(InputError, match="before a forward in training mode"):
        layer.take_penalty()


def test_a_forward_without_gradients_leaves_the_penalty_that_has_one():
    layer, weight = Plain(), torch.ones((), requires_grad=True)
    layer.store_penalty(2 * weight)
    with torch.no_grad():
        layer.store_penalty(3 * weight)
    penalty = layer.take_penalty()
    assert penalty.item() == 2.0 and penalty.requires_grad
    with torch.no_grad():
        layer.store_penalty(4 * weight)
        layer.store_penalty(5 * weight)
        assert layer.take_penalty().item() == 5.0
        layer.store_penalty(6 * weight)
    with pytest.raises(InputError, match=r"no gradient.*use_reentrant=False"):
        layer.take_penalty()
    # What is refused is gone, and the next one with a gradient is right again.
    layer.store_penalty(7 * weight)
    assert layer.take_penalty().item() == 7.0


def test_a_copy_takes_neither_penalty_nor_observer_along():
    layer = Plain()
    layer.store_penalty(torch.ones((), requires_grad=True) * 2)
    layer.observer = print
    layer.in_plain_mlp = True
    twin = copy.deepcopy(layer)
    assert (twin.pending_penalty, twin.observer, twin.in_plain_mlp) == (None, None, True)
    assert layer.take_penalty().item() == 2.0


@pytest.mark.parametrize("p", [0, 1, 0.25])
def test_a_probability_is_a_float(p):
    assert type(check_probability(p)) is float and check_probability(p) == p


@pytest.mark.parametrize("p", [-0.01, 1.01, float("nan")])
def test_what_is_no_probability_is_refused_by_its_name(p):
    with pytest.raises(InputError, match=f"^p is {p}, but"):
        check_probability(p)
    with pytest.raises(InputError, match=f"^rate is {p}, but"):
        check_probability(p, "rate")


def test_a_rate_is_a_number_for_eager_code_and_a_tensor_for_compiled(monkeypatch):
    layer = RateLayer()
    assert (layer.p, layer.rate.item(), layer.probability(), layer.state_dict()) == (0.5, 0.5, 0.5, {})
    assert layer.current_rate() == 0.5 and isinstance(layer.current_rate(), float)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert layer.current_rate() is layer.rate


def test_a_rate_comes_back_where_memory_was_made_anew_and_what_is_inside_moves_along():
    layer = Inner(0.3).to("meta").to_empty(device="cpu")
    assert layer.rate.item() == pytest.approx(0.3)
    layer = Inner(0.25).to(torch.float64)
    assert (layer.rate.item(), layer.linear.weight.dtype) == (0.25, torch.float64)


def test_a_layer_takes_from_its_place_what_its_constructor_asks_for():
    layer = td.LearnedDropout.for_site(site(causal=False), {"heads": 3})
    assert (layer.width, layer.heads, layer.causal) == (6, 3, False)
    assert td.LearnedDropout.for_site(site(causal=False), {"heads": 3, "causal": True}).causal
    assert td.Dropout.for_site(site(width=None), {"p": 0.2}).p == 0.2
    assert td.LearnedBlockDropout.for_site(site(), {"block": 2}, inputs=5).inputs == 5
    assert td.LearnedBlockDropout.for_site(site(), {"block": 2}).inputs == 6


@pytest.mark.parametrize(
    ("layer", "arguments", "place", "sentence"),
    [
        (td.LearnedDropout, {"heads": 3}, {"width": None}, r"needs a place with a width, and a\.b "),
        (td.LearnedDropout, {}, {}, r"LearnedDropout at a\.b \(mlp_output\) needs heads\."),
        (td.DropPath, {"p": 0.1}, {"access": "rate"}, r"At a\.b \(mlp_output\) .*use Dropout there, not D"),
        (td.DropKey, {"p": 0.1}, {}, r"acts on the scores before the softmax, which a\.b \(mlp_output\)"),
        (td.DropHead, {"p": 0.1}, {}, r"acts on the heads of an attention, and a\.b \(mlp_output\) has none"),
        (td.TokenDropout, {"p": 0.1}, {"kind": "attention_weights"}, "acts on whole tokens"),
        (td.DropPath, {"p": 0.1}, {"batch_first": False}, "has the tokens first"),
        (td.LearnedDropout, {"heads": 3}, {"batch_first": False}, "has the tokens first"),
    ],
)
def test_a_place_where_a_layer_cannot_act_is_refused(layer, arguments, place, sentence):
    with pytest.raises(InputError, match=sentence):
        layer.for_site(site(**place), arguments)


@pytest.mark.parametrize(
    ("layer", "place"),
    [
        (td.Dropout, {"access": "rate"}),
        (td.DropKey, {"access": "attention", "kind": "attention_weights", "width": None}),
        (td.DropHead, {"access": "attention", "kind": "attention_weights", "width": None}),
        (td.TokenDropout, {"kind": "embedding"}),
        (td.Dropout, {"batch_first": False}),
    ],
)
def test_a_place_where_it_can_is_not(layer, place):
    assert layer.for_site(site(**place), {"p": 0.1}).p == 0.1
