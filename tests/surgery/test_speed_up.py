import pytest
import torch
from torch import nn

import transformer_dropout as td
from transformer_dropout.audit.tiny_models import tiny_model
from transformer_dropout.kernels.linear import FastLinear


def test_results_stay_and_names_stay():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
    x, names = torch.randn(600, 64), list(model.state_dict())
    expected = model(x)
    td.speed_up_(model)
    assert all(type(layer) is FastLinear for layer in (model[0], model[2]))
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert list(model.state_dict()) == names


def test_twice_is_once_and_subclasses_are_left_alone():
    class Special(nn.Linear):
        pass

    model = nn.ModuleList([nn.Linear(4, 4), Special(4, 4)])
    td.speed_up_(model)
    td.speed_up_(model)
    assert [type(layer) for layer in model] == [FastLinear, Special]


def test_it_goes_with_regularize_in_either_order():
    recipe = td.Recipe([td.Rule("mlp_output", td.Dropout, p=0.5)])
    for first in (True, False):
        torch.manual_seed(0)
        model = tiny_model("llama").train()
        if first:
            td.speed_up_(model)
        regularization = td.regularize_(model, recipe)
        if not first:
            td.speed_up_(model)
        tokens = torch.randint(20, (2, 8))
        assert not torch.equal(model(tokens).logits, model(tokens).logits)
        regularization.remove()
        model(tokens).logits.sum().backward()


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(td.InputError, match=r"found no nn\.Linear in this LayerNorm"):
        td.speed_up_(nn.LayerNorm(4))
