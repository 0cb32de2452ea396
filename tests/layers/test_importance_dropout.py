import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from transformer_dropout.errors import InputError
from transformer_dropout.layers import ImportanceDropout
from transformer_dropout.layers.importance_dropout import activity, distinctness, rates_by_importance
from transformer_dropout.recipe import Recipe, Rule
from transformer_dropout.surgery.regularize import regularize_
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig

SIZES = torch.tensor([0.1, 5.0, 1.0, 300.0])  # the units of the example, the last a hundred times the rest


def measured(p=0.2, spread=0.8):
    torch.manual_seed(0)
    layer = ImportanceDropout(4, p, spread=spread)
    layer(SIZES * torch.randn(50, 3, 4))
    layer.set_rate(p)
    return layer


importances = st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=30)


@given(importances, st.floats(0, 1), st.floats(0, 0.99))
def test_the_mean_rate_is_p_and_every_rate_a_probability(values, p, spread):
    rates = rates_by_importance(torch.tensor(values), p, spread)
    assert rates.double().mean().item() == pytest.approx(p, abs=1e-6)
    assert (rates >= -1e-6).all()
    assert (rates <= 1 + 1e-6).all()


@given(importances, st.floats(0.01, 0.99))
def test_rates_fall_with_importance_and_equals_share_theirs(values, p):
    importance = torch.tensor(values)
    rates = rates_by_importance(importance, p, 0.8)
    more, same = importance[:, None] > importance, importance[:, None] == importance
    difference = rates[:, None] - rates
    assert (difference[more] < 0).all()
    assert (difference[same] == 0).all()


def test_the_rates_of_the_docstring():
    rates = rates_by_importance(torch.tensor([3.0, 1.0, 2.0]), 0.1, 0.8)
    torch.testing.assert_close(rates, torch.tensor([0.02, 0.18, 0.1]))


def test_a_layer_that_has_measured_drops_the_small_units_most_and_keeps_every_expectation():
    layer = measured()
    assert layer.unit_rates.mean().item() == pytest.approx(0.2)
    assert layer.unit_rates.argsort(descending=True).tolist() == SIZES.argsort().tolist()
    draws = layer(torch.ones(100_000, 4))
    torch.testing.assert_close((draws == 0).float().mean(dim=0), layer.unit_rates, atol=0.01, rtol=0)
    torch.testing.assert_close(draws.mean(dim=0), torch.ones(4), atol=0.02, rtol=0)


def test_importance_is_the_running_mean_of_absolute_activations():
    layer = ImportanceDropout(2, momentum=0.75)
    layer(torch.tensor([[[1.0, -2.0], [-3.0, 0.0]]]))
    torch.testing.assert_close(layer.importance, torch.tensor([0.5, 0.25]))
    layer(torch.tensor([[4.0, 4.0]]))
    torch.testing.assert_close(layer.importance, torch.tensor([1.375, 1.1875]))
    layer.eval()(torch.full((1, 2), 100.0))
    torch.testing.assert_close(layer.importance, torch.tensor([1.375, 1.1875]))


def test_an_overflow_or_an_empty_batch_leaves_no_trace():
    layer = measured()
    before = layer.importance.clone()
    layer(torch.full((2, 4), torch.inf))
    layer(torch.empty(0, 4))
    assert torch.equal(layer.importance, before)


def test_forwards_alone_never_move_the_rates():
    layer = measured()
    before = layer.unit_rates.clone()
    for _ in range(20):
        layer(SIZES.flip(0) * torch.randn(50, 4))
    assert torch.equal(layer.unit_rates, before)
    layer.set_rate(0.2)
    assert not torch.equal(layer.unit_rates, before)


def test_a_layer_called_twice_is_recomputed_with_the_masks_of_its_first_runs():
    def gradient(checkpointed):
        layer, x = measured(), torch.linspace(0.5, 2, 40).view(10, 4).requires_grad_()
        torch.manual_seed(5)
        y = x
        for _ in range(2):
            y = checkpoint(layer, y, use_reentrant=False) if checkpointed else layer(y)
        importance = layer.importance.clone()
        y.sum().backward()
        assert torch.equal(layer.importance, importance)  # a recomputation measures nothing
        return x.grad

    assert torch.equal(gradient(True), gradient(False))


def test_importances_are_saved_and_give_the_same_rates_back():
    layer, other = measured(), ImportanceDropout(4, 0.2)
    assert list(layer.state_dict()) == ["importance"]
    other.load_state_dict(layer.state_dict())
    other.set_rate(0.2)
    assert torch.equal(other.unit_rates, layer.unit_rates)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_in_half_precision_it_still_measures_in_full(dtype):
    layer = ImportanceDropout(4, 0.1).to(dtype)
    x = torch.full((3, 4), 2.0, dtype=dtype)
    for _ in range(400):
        assert layer(x).dtype == dtype
    assert layer.importance.dtype == layer.unit_rates.dtype == torch.float32
    # 1 - 0.99^400 of the way; in bfloat16 steps of a hundredth would stop at about a quarter of it.
    torch.testing.assert_close(layer.importance, torch.full((4,), 1.964), atol=0.01, rtol=0)
    copy.deepcopy(layer).to(torch.float32)(x.float())


def test_a_handle_renews_the_rates_each_step():
    torch.manual_seed(0)
    model = Decoder(19, DecoderConfig(width=8, heads=2, blocks=2, context=6))
    reg = regularize_(model, Recipe([Rule("mlp_hidden", ImportanceDropout, p=0.3, spread=0.5)]))
    layer = reg.placed[0].layer
    assert layer.unit_rates.std() < 1e-6
    model(torch.arange(12).view(2, 6))
    reg.set_progress(0.1)
    assert layer.unit_rates.mean().item() == pytest.approx(0.3)
    assert (layer.unit_rates.min().item(), layer.unit_rates.max().item()) == (
        pytest.approx(0.15),
        pytest.approx(0.45),
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"width": 0}, "at least 1"),
        ({"spread": 1.0}, "spread is 1.0"),
        ({"spread": -0.1}, "spread is -0.1"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"p": 2}, "between 0 and 1"),
        ({"by": "size"}, "size"),
    ],
)
def test_wrong_words_are_refused(words, message):
    with pytest.raises(InputError, match=message):
        ImportanceDropout(**({"width": 4} | words))


def test_of_two_units_one_has_the_least_rate_and_one_the_most():
    torch.testing.assert_close(
        rates_by_importance(torch.tensor([2.0, 1.0]), 0.1, 0.8), torch.tensor([0.02, 0.18])
    )


def test_the_least_of_every_number_is_taken():
    layer = ImportanceDropout(1, 0.3, spread=0.0, momentum=0.0)
    layer(torch.tensor([[2.0]]))
    layer.set_rate(0.4)
    assert (layer.importance.item(), layer.unit_rates.item()) == (2.0, pytest.approx(0.4))


def test_made_without_memory_and_given_some_it_begins_anew():
    layer = ImportanceDropout(64, 0.3).to("meta").to_empty(device="cpu")
    assert layer.importance.count_nonzero() == 0
    torch.testing.assert_close(layer.unit_rates, torch.full((64,), 0.3))
    assert layer.rate.item() == pytest.approx(0.3)


def test_activity_is_the_mean_size_of_each_unit_in_full_precision():
    x = torch.tensor([[[1.0, -2.0], [-3.0, 0.0]]], dtype=torch.bfloat16)
    assert torch.equal(activity(x), torch.tensor([2.0, 1.0]))


def test_a_unit_that_repeats_another_is_less_distinct_than_one_on_its_own():
    torch.manual_seed(0)
    a, b, c = torch.randn(3, 500)
    units = torch.stack([a, -3 * a + 1, b, c, torch.full_like(a, 0.1)], dim=-1)
    found = distinctness(units.view(5, 100, 5))
    expected = 1 - (torch.corrcoef(units[:, :4].T).abs().sum(0) - 1) / 4
    torch.testing.assert_close(found[:4], expected, atol=1e-5, rtol=0)
    assert found[4] == 0
    assert found[:2].max() < found[2:4].min()


@pytest.mark.parametrize("rows", [0, 1])
def test_by_redundancy_too_few_rows_leave_no_trace(rows):
    layer = ImportanceDropout(3, 0.3, by="redundancy")
    layer(torch.randn(20, 3))
    before = layer.importance.clone()
    layer(torch.randn(rows, 3))
    assert before.count_nonzero() == 3
    assert torch.equal(layer.importance, before)


def test_one_unit_alone_is_distinct():
    assert distinctness(torch.tensor([[1.0], [2.0]])).tolist() == [1.0]


def test_by_redundancy_the_unit_that_no_other_repeats_is_dropped_least():
    torch.manual_seed(0)
    layer = ImportanceDropout(3, 0.3, by="redundancy", momentum=0.0)
    a, b = torch.randn(2, 200)
    layer(torch.stack([a, b, -a], dim=-1))
    layer.set_rate(0.3)
    assert layer.unit_rates.argmin() == 1
    assert layer.unit_rates[0] == pytest.approx(layer.unit_rates[2].item())


def test_by_gradient_importance_is_what_removing_the_unit_does_to_the_loss():
    layer = ImportanceDropout(3, 0.0, by="gradient", momentum=0.0)
    x = torch.tensor([[1.0, 1.0, 5.0], [-1.0, 3.0, 5.0]], requires_grad=True)
    y = layer(x)
    assert layer.importance.count_nonzero() == 0
    (y * torch.tensor([4.0, 1.0, 0.0])).sum().backward()
    torch.testing.assert_close(layer.importance, torch.tensor([4.0, 2.0, 0.0]))
    torch.testing.assert_close(x.grad, torch.tensor([[4.0, 1.0, 0.0]] * 2))
    with torch.no_grad():
        layer(x)


@pytest.mark.parametrize("reentrant", [None, False, True])
def test_by_gradient_a_checkpoint_measures_once(reentrant):
    layer = ImportanceDropout(2, 0.0, by="gradient", momentum=0.5)
    x = torch.ones(3, 2, requires_grad=True)
    y = layer(x) if reentrant is None else checkpoint(layer, x, use_reentrant=reentrant)
    (2 * y).sum().backward()
    assert layer.importance.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_by_gradient_a_compiled_model_measures_the_same(backend):
    layer = ImportanceDropout(2, 0.0, by="gradient", momentum=0.0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), layer, torch.nn.Linear(2, 3))
    found = []
    for forward in (model, torch.compile(model, backend=backend, fullgraph=True)):
        forward(torch.ones(3, 2)).sum().backward()
        found.append(layer.importance.clone())
        layer.importance.zero_()
    assert found[0].count_nonzero() == 2
    torch.testing.assert_close(*found)
