"""A layer that drops nothing changes nothing but what rounding does, and a fault is no rounding."""

import pytest
import torch
from torch import nn

import transformer_dropout as td
from transformer_dropout.audit.tiny_models import tiny_inputs, tiny_model
from transformer_dropout.surgery import _attention, _probe
from transformer_dropout.surgery._probe import (
    ROUNDING,
    Probe,
    in_double,
    layers_at,
    nothing_else_drops,
    results,
    unmoved,
)
from transformer_dropout.surgery._together import Lever


class Waves(nn.Module):
    """A BERT before waves so short that rounding shows in them."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = tiny_model("bert").base_model

    def forward(self, input_ids, attention_mask):
        hidden = self.bert(input_ids, attention_mask=attention_mask).last_hidden_state
        return torch.sin(5000.0 * hidden)


def short_waves():
    inputs = tiny_inputs(tiny_model("bert"))
    return Waves(), {name: inputs[name] for name in ("input_ids", "attention_mask")}


def half_precision():
    model = tiny_model("t5")
    return model.to(torch.bfloat16), tiny_inputs(model)


def padding_on_the_left():
    model = tiny_model("llama")
    inputs = tiny_inputs(model)
    inputs["attention_mask"][1, :5] = 0
    return model, inputs


HARD = [short_waves, half_precision, padding_on_the_left]


def weights_of(model, inputs):
    return [site for site in td.find_sites(model, inputs) if site.kind == "attention_weights"]


@pytest.mark.parametrize("hard", HARD)
def test_what_is_made_of_rounding_is_no_fault(hard):
    model, inputs = hard()
    checks = td.check_sites(model, inputs, sites=weights_of(model, inputs))
    assert len(checks) >= 2
    assert [check.problem for check in checks if check.problem] == []


def test_the_waves_really_make_much_of_rounding():
    model, inputs = short_waves()
    sites = td.find_sites(model, inputs)
    with nothing_else_drops(model, sites):
        (before,) = results(model, inputs, training=True)
        with layers_at(model, weights_of(model, inputs), 0.0):
            (after,) = results(model, inputs, training=True)
    assert (before - after).abs().max() > ROUNDING


@pytest.mark.parametrize("hard", HARD)
def test_a_fault_is_told_all_the_same(hard, monkeypatch):
    model, inputs = hard()
    written_out = _attention.attention_weights

    def too_little(*given, **others):
        return 0.9 * written_out(*given, **others)

    monkeypatch.setattr(_attention, "attention_weights", too_little)
    checks = td.check_sites(model, inputs, sites=weights_of(model, inputs))
    assert all("that drops nothing at" in (check.problem or "") for check in checks)


def test_a_query_that_may_look_nowhere_is_given_what_the_model_gives_it():
    model, inputs = padding_on_the_left()
    model.train()
    expected = model(**inputs).logits
    handle = td.set_rates(model, {"attention_weights": 0.0})
    torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-6, rtol=1e-5)
    handle.remove()


def test_a_layer_that_acts_in_evaluation_is_told(monkeypatch):
    """Torch's layers round otherwise in evaluation where one has a hook; that hides no fault."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model, inputs = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(2, 6, 32)
    asked = [site for site in td.find_sites(model, inputs) if site.kind == "mlp_output"]
    assert [check.problem for check in td.check_sites(model, inputs, sites=asked) if check.problem] == []

    def always(probe, x):
        probe.seen.append(tuple(x.shape))
        return x * (1 - probe.p)

    def whatever_the_mode(lever, x):
        lever.seen.append(tuple(x.shape))
        return x if lever.number is None else x * lever.number

    monkeypatch.setattr(Probe, "forward", always)
    monkeypatch.setattr(Lever, "forward", whatever_the_mode)
    problems = [check.problem or "" for check in td.check_sites(model, inputs, sites=asked)]
    assert all("changes the output in evaluation" in problem for problem in problems)


def test_of_nested_inputs_the_numbers_are_doubled_and_the_tokens_stay():
    ids, image = torch.arange(4), torch.ones(2)
    doubled = in_double(({"ids": ids, "image": [image]}, None, 3))
    assert doubled == ({"ids": ids, "image": doubled[0]["image"]}, None, 3)
    assert doubled[0]["image"][0].dtype == torch.float64


def test_what_rounds_in_training_alone_is_not_measured_again(monkeypatch):
    def refuse(model):
        raise RuntimeError("single precision alone")

    monkeypatch.setattr(_probe, "deepcopy", refuse)
    before, rounded, other = [torch.ones(2)], [torch.ones(2) + 1e-6], [torch.ones(2) + 1e-2]
    found = [
        [unmoved(None, None, None, p, before, after) for after in (before, rounded, other)]
        for p in (0.0, 1.0)
    ]
    assert found == [[True, True, False], [True, False, False]]
