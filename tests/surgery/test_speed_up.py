import copy
import pickle

import pytest
import torch
from torch import nn

import transformer_dropout as td
from transformer_dropout.audit.tiny_models import tiny_inputs, tiny_model
from transformer_dropout.kernels.linear import is_fast
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside transformers


def as_it_is(model):
    """Return all that instances hold, and their classes."""
    return [(type(module), dict(vars(module))) for module in model.modules()]


def test_results_stay_and_names_stay():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
    x, names = torch.randn(600, 64), list(model.state_dict())
    expected = model(x)
    assert td.speed_up_(model).paths == ("0", "2")
    assert model(x).grad_fn.name() == "OneDnnProductBackward"
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert list(model.state_dict()) == names


def test_gpt2s_layers_are_reached_with_results_and_gradients_as_before():
    model = tiny_model("gpt2").train(False)
    inputs = tiny_inputs(model)

    def gradients():
        model.zero_grad()
        model(**inputs).logits.square().sum().backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    before = gradients()
    handle = td.speed_up_(model)
    assert {"transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj", "lm_head"} <= set(handle.paths)
    for name, found in gradients().items():
        torch.testing.assert_close(found, before[name], rtol=1e-4, atol=1e-4)
    large = torch.randn(5000, model.config.n_embd)
    assert model.transformer.h[0].mlp.c_fc(large).grad_fn.name() == "OneDnnProductBackward"


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_undone_nothing_is_left(family):
    model = tiny_model(family)
    before = as_it_is(model)
    handle = td.speed_up_(model)
    assert [kind for kind, _ in as_it_is(model)] == [kind for kind, _ in before]
    assert as_it_is(model) != before
    handle.remove()
    handle.remove()
    assert as_it_is(model) == before


def test_twice_is_once_and_subclasses_and_forwards_of_others_are_left_alone():
    class Special(nn.Linear):
        pass

    model = nn.ModuleList([nn.Linear(4, 4), Special(4, 4), nn.Linear(4, 4)])
    model[2].forward = lambda x: x
    first, second = td.speed_up_(model), td.speed_up_(model)
    assert (first.paths, second.paths) == (("0",), ())
    assert [is_fast(layer) for layer in model] == [True, False, False]
    first.remove()
    assert not is_fast(model[0])


def test_copies_and_pickles_compute_with_their_own_weights():
    model = nn.Sequential(nn.Linear(6, 4))
    td.speed_up_(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        nn.init.zeros_(other[0].weight)
        nn.init.ones_(other[0].bias)
        assert other(torch.randn(3, 6)).eq(1).all()
    assert not model(torch.randn(3, 6)).eq(1).any()


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


@pytest.mark.parametrize("order", ["speed first", "layers first"])
@pytest.mark.parametrize("out", ["speed first", "layers first"])
def test_both_come_out_in_either_order(order, out):
    model = Decoder(16, DecoderConfig(width=8, heads=2, blocks=2, context=8))
    before = as_it_is(model)
    rules = [
        td.Rule("mlp_hidden", td.LearnedBlockDropout, block=8),
        td.Rule("attention_output", td.Dropout, p=0.5),
    ]
    steps = [lambda: td.speed_up_(model), lambda: td.regularize_(model, td.Recipe(rules))]
    handles = [step() for step in (steps if order == "speed first" else steps[::-1])]
    if order == "layers first":
        handles.reverse()
    model(torch.arange(8).view(2, 4), torch.arange(8).view(2, 4)).backward()
    model.zero_grad()
    for handle in handles if out == "speed first" else handles[::-1]:
        handle.remove()
    assert as_it_is(model) == before


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(td.InputError, match=r"found no nn\.Linear in this LayerNorm"):
        td.speed_up_(nn.LayerNorm(4))
