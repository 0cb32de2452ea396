"""A model that was looked at is as it was."""

import torch
from torch import nn

import transformer_dropout as td
from transformer_dropout.audit.tiny_models import tiny_inputs, tiny_model
from transformer_dropout.sites.observation.restore import unchanged


def hooks_in(model):
    return [list(module._forward_hooks.values()) for module in model.modules()]


def test_hooks_that_a_forward_installs_are_gone_and_those_that_were_there_stay():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].register_forward_hook(lambda *given: None)
    before = hooks_in(model)
    with unchanged(model):
        model[0].register_forward_hook(lambda *given: None)
        model[1].register_forward_pre_hook(lambda *given: None)
        model(torch.ones(1, 4))
    assert hooks_in(model) == before
    assert not model[1]._forward_pre_hooks


def test_a_model_that_captures_its_hidden_states_captures_each_once():
    model = tiny_model("llama")
    inputs = {**tiny_inputs(model), "output_hidden_states": True}
    expected = len(tiny_model("llama")(**inputs).hidden_states)
    for _ in range(2):
        td.find_sites(model, inputs)
    assert len(model(**inputs).hidden_states) == expected
