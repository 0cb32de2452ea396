"""Each penalty against its formula in plain Python, and exact zeros where the mathematics puts them."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import transformer_dropout as td
from transformer_dropout.terms.penalties import elastic_net_penalty, l1_penalty, l2_penalty, l2_sp_penalty

numbers = st.lists(st.floats(-100, 100), min_size=1, max_size=6)


class Model(nn.Module):
    """Two matrices, one of them tied, and what penalties leave alone."""

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(3, 2)
        self.body = nn.Linear(2, 2)
        self.norm = nn.LayerNorm(2)
        self.classifier = nn.Linear(2, 3)
        self.classifier.weight = self.tokens.weight


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model()


def flat(*tensors):
    return [value for tensor in tensors for value in tensor.detach().flatten().tolist()]


def double(values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


@given(numbers, numbers, st.floats(0, 1))
def test_the_formulas_by_hand(first, second, ratio):
    tensors, values = [double(first), double(second)], first + second
    absolute, half_squares = sum(map(abs, values)), sum(v * v for v in values) / 2
    assert l1_penalty(tensors).item() == pytest.approx(absolute)
    assert l2_penalty(tensors).item() == pytest.approx(half_squares)
    expected = ratio * absolute + (1 - ratio) * half_squares
    assert elastic_net_penalty(tensors, ratio).item() == pytest.approx(expected)
    start = [double([1.0] * len(first)), double([-2.0] * len(second))]
    distance = sum((v - 1) ** 2 for v in first) / 2 + sum((v + 2) ** 2 for v in second) / 2
    assert l2_sp_penalty(tensors, start).item() == pytest.approx(distance)


def test_the_gradients_by_hand():
    w = double([-3.0, 0.0, 0.5])
    l1_penalty([w]).backward()
    assert w.grad.tolist() == [-1.0, 0.0, 1.0]
    w = double([-3.0, 0.0, 0.5])
    l2_penalty([w]).backward()
    assert w.grad.tolist() == [-3.0, 0.0, 0.5]
    w = double([-3.0, 0.0, 0.5])
    l2_sp_penalty([w], [double([1.0, 1.0, 0.5]).detach()]).backward()
    assert w.grad.tolist() == [-4.0, -1.0, 0.0]
    w = double([[-3.0, 0.3], [2.0, 0.5]])
    assert torch.autograd.gradcheck(lambda w: elastic_net_penalty([w], 0.3), w)


def test_squares_do_not_overflow_in_half_precision():
    w = torch.full((1000,), 300.0, dtype=torch.float16)
    assert l2_penalty([w]).item() == pytest.approx(1000 * 300.0**2 / 2)


@pytest.mark.parametrize(
    ("penalty", "formula"),
    [
        (td.L1, lambda values: sum(map(abs, values))),
        (td.L2, lambda values: sum(v * v for v in values) / 2),
        (td.ElasticNet, lambda values: sum(abs(v) / 2 + v * v / 4 for v in values)),
    ],
)
def test_a_penalty_of_a_model_counts_its_matrices_once_each(model, penalty, formula):
    values = flat(model.tokens.weight, model.body.weight)
    assert penalty(model, 0.1)().item() == pytest.approx(0.1 * formula(values), rel=1e-5)


def test_gradients_reach_matrices_only(model):
    td.L2(model, 0.5)().backward()
    assert model.body.weight.grad.allclose(0.5 * model.body.weight)
    assert model.tokens.weight.grad.allclose(0.5 * model.tokens.weight)
    assert model.body.bias.grad is model.norm.weight.grad is model.classifier.bias.grad is None


def test_patterns_choose_what_is_penalised(model):
    values = flat(model.body.weight, model.body.bias)
    assert td.L1(model, 1.0, select="body.*")().item() == pytest.approx(sum(map(abs, values)), rel=1e-5)
    by_both_names = td.L1(model, 1.0, select=["tokens.weight", "classifier.weight"])
    assert by_both_names.parameters == [model.tokens.weight]


def test_given_tensors_are_taken_as_they_are_but_once(model):
    assert td.L1(model.parameters(), 1.0).parameters == list(model.parameters())
    assert td.L1([model.norm.weight] * 2, 3.0)().item() == 6.0


def test_frozen_parameters_are_left_out(model):
    model.tokens.requires_grad_(False)
    assert td.L2(model, 1.0).parameters == [model.body.weight]


def test_the_weight_follows_its_schedule(model):
    penalty = td.L1(model, td.Linear(0.0, 1.0))
    assert penalty().item() == 0.0
    penalty.set_progress(0.25)
    assert penalty.weight == 0.25
    assert penalty().item() == pytest.approx(td.L1(model, 0.25)().item())


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda m: td.L1(m, 1.0, select="layers.*"), "matches no parameter; there are: tokens.weight, body"),
        (lambda m: td.L1(m.parameters(), 1.0, select="body.*"), "tensors have none"),
        (lambda m: td.L1([], 1.0), "no parameters"),
        (lambda m: td.L1(m.norm, 1.0), "no trainable matrix"),
        (lambda m: td.L1(m, 1.0).set_progress(2), "fraction of training"),
        (lambda m: td.ElasticNet(m, 1.0, l1_ratio=1.5), "share between 0 and 1"),
        (lambda m: td.L2SP(m, 1.0, new="head.*"), "'head.*' matches no parameter"),
        (lambda m: td.L2SP(m, 1.0, pretrained={"bert.body.weight": m.body.weight}), "this very model class"),
        (lambda m: td.L2SP(m, 1.0, pretrained={}), "no value for tokens.weight"),
    ],
)
def test_bad_input_is_refused(model, build, says):
    with pytest.raises(td.InputError) as error:
        build(model)
    assert says in str(error.value)


def test_an_elastic_net_acts_on_what_is_selected_at_both_ends_of_its_ratio(model):
    for ratio, same in ((1.0, td.L1), (0.0, td.L2)):
        net = td.ElasticNet(model, 2.0, l1_ratio=ratio, select="body.weight")
        assert net.parameters == [model.body.weight]
        assert net().item() == pytest.approx(same([model.body.weight], 2.0)().item())


# L2-SP


def test_l2_sp_needs_a_start_for_every_parameter(model):
    weights = [model.body.weight, model.tokens.weight]
    with pytest.raises(ValueError, match="shorter"):
        l2_sp_penalty(weights, weights[:1])


def test_l2_sp_pulls_to_the_start_and_new_parameters_to_zero(model):
    model.classifier.weight = nn.Parameter(torch.randn(3, 2))
    penalty = td.L2SP(model, 0.5, new="classifier.weight", new_weight=0.2)
    assert (penalty.pulled, penalty.new) == (["tokens.weight", "body.weight"], ["classifier.weight"])
    head = sum(v * v for v in flat(model.classifier.weight)) / 2
    assert penalty().item() == pytest.approx(0.2 * head, rel=1e-5)
    start = model.body.weight.detach().clone()
    with torch.no_grad():
        model.body.weight += 1.0
        model.tokens.weight -= 2.0
    assert penalty().item() == pytest.approx(0.5 * (4 * 1 + 6 * 4) / 2 + 0.2 * head, rel=1e-5)
    penalty().backward()
    assert model.body.weight.grad.allclose(0.5 * (model.body.weight - start))
    assert model.classifier.weight.grad.allclose(0.2 * model.classifier.weight)
    assert model.body.bias.grad is None


def test_l2_sp_knows_new_parameters_by_what_the_pretrained_lack(model):
    pretrained = copy.deepcopy(model.state_dict())
    model.classifier = nn.Linear(2, 5)
    model.extra = nn.Linear(2, 2)
    penalty = td.L2SP(model, td.Linear(0.0, 2.0), pretrained=pretrained, new_weight=td.Constant(0.3))
    assert (penalty.pulled, penalty.new) == (
        ["tokens.weight", "body.weight"],
        ["classifier.weight", "extra.weight"],
    )
    with torch.no_grad():
        model.body.weight += 1.0
    assert penalty.weight == 0.0
    penalty.set_progress(0.5)
    head = sum(v * v for v in flat(model.classifier.weight, model.extra.weight)) / 2
    assert penalty().item() == pytest.approx(1.0 * 4 / 2 + 0.3 * head, rel=1e-5)


def test_l2_sp_follows_the_model_to_another_dtype(model):
    penalty = td.L2SP(model, 1.0)
    model.double()
    assert penalty().dtype == torch.float64
    assert penalty().item() == 0.0
    assert {start.dtype for start in penalty.start} == {torch.float64}


def replaced(model, change=lambda value: value.clone()):
    """Put new parameters in the place of all, as sharding a model does."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                setattr(module, name, nn.Parameter(change(parameter.detach())))


@pytest.mark.parametrize("build", [td.L1, td.L2, td.ElasticNet, td.L2SP])
def test_parameters_that_are_replaced_later_are_the_ones_that_are_penalised(build):
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    term = build(model, 1.0)
    replaced(model, lambda value: value + 1)
    term().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.ndim == 2)


def test_a_parameter_that_is_gone_is_named():
    model = nn.Sequential(nn.Linear(3, 2))
    term = td.L2(model, 1.0)
    nn.utils.parametrizations.weight_norm(model[0])
    with pytest.raises(td.InputError, match=r"0.weight is no parameter of shape \(2, 3\) any more"):
        term()


def test_strong_l2_sp_keeps_a_model_where_it_was(model):
    start = model.body.weight.detach().clone()
    penalty = td.L2SP(model, 100.0, select="body.weight")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005)
    for _ in range(200):
        optimizer.zero_grad()
        (model.body.weight.sum() + penalty()).backward()
        optimizer.step()
    # Where the gradients cancel: w - w0 = -1 / 100.
    assert model.body.weight.allclose(start - 0.01, atol=1e-5)


# Soft-thresholding


@given(numbers, st.floats(0, 10), st.floats(0, 1))
def test_soft_thresholding_by_hand(values, weight, lr):
    w = double(values)
    td.proximal_l1_([w], weight, lr)
    expected = [math.copysign(max(abs(v) - lr * weight, 0.0), v) for v in values]
    assert w.tolist() == pytest.approx(expected)
    assert [v == 0 for v in w.tolist()] == [v == 0 for v in expected]


def test_an_optimizer_shrinks_its_decayed_groups_each_by_its_own_rate():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    groups = [
        group | {"lr": lr}
        for layer, lr in zip(model, (0.1, 0.2), strict=True)
        for group in td.weight_decay_groups(layer, 0.0)
    ]
    td.proximal_l1_(torch.optim.AdamW(groups), 2.0)
    assert [p.unique().item() for p in model.parameters()] == pytest.approx([0.8, 1.0, 0.6, 1.0])


def orthogonal_design(seed=0, rows=20, width=8):
    torch.manual_seed(seed)
    x = torch.linalg.qr(torch.randn(rows, width, dtype=torch.float64)).Q
    truth = torch.tensor([3.0, -2.0, 1.5, -1.0, 0, 0, 0, 0], dtype=torch.float64)
    return x, x @ truth + 0.05 * torch.randn(rows, dtype=torch.float64)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.2, 4.0])
def test_gradient_descent_ends_at_the_closed_form_of_the_lasso(weight):
    x, y = orthogonal_design()
    w = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.1)
    for _ in range(400):
        optimizer.zero_grad()
        ((x @ w - y).square().sum() / 2).backward()
        optimizer.step()
        td.proximal_l1_([w], weight, 0.1)
    free = (x.T @ y).tolist()
    closed_form = [math.copysign(max(abs(v) - weight, 0), v) for v in free]
    assert w.tolist() == pytest.approx(closed_form, abs=1e-12)
    assert [v == 0 for v in w.tolist()] == [v == 0 for v in closed_form]


def test_gradient_descent_ends_where_no_direction_of_a_correlated_lasso_descends():
    torch.manual_seed(1)
    x = torch.randn(30, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    y, weight = torch.randn(30, dtype=torch.float64), 8.0
    lr = 1 / torch.linalg.matrix_norm(x, 2).item() ** 2
    w = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=lr)
    for _ in range(10_000):
        optimizer.zero_grad()
        ((x @ w - y).square().sum() / 2).backward()
        optimizer.step()
        td.proximal_l1_([w], weight, lr)
    gradient = x.T @ (x @ w.detach() - y)
    alive = w.detach() != 0
    assert 0 < alive.sum() < 6
    # The subgradient of the whole objective contains 0.
    assert torch.allclose(gradient[alive], -weight * w.detach()[alive].sign(), atol=1e-6)
    assert (gradient[~alive].abs() <= weight + 1e-9).all()


def adam_on_noisy_regression(weight):
    torch.manual_seed(0)
    model = nn.Linear(20, 1)
    truth = torch.zeros(20)
    truth[:4] = torch.tensor([2.0, -2.0, 1.0, -1.0])
    optimizer = torch.optim.Adam(td.weight_decay_groups(model, 0.0), lr=0.01)
    penalty = td.L1(model, 0.1)
    for _ in range(600):
        x = torch.randn(16, 20)
        loss = (model(x)[:, 0] - x @ truth - torch.randn(16)).square().mean()
        optimizer.zero_grad()
        (loss if weight else loss + penalty()).backward()
        optimizer.step()
        td.proximal_l1_(optimizer, weight)
    return model.weight.detach()[0]


def test_under_adam_useless_weights_become_exactly_zero_and_useful_ones_stay():
    w = adam_on_noisy_regression(0.2)
    assert (w[4:] == 0).sum() >= 12
    assert (w[:4].abs() > 0.5).all()


def test_under_adam_a_penalty_in_the_loss_alone_gives_no_exact_zero():
    assert (adam_on_noisy_regression(0.0) != 0).all()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda w, o: td.proximal_l1_([w], 1.0), "needs lr"),
        (lambda w, o: td.proximal_l1_([w], -1.0, 0.1), "weight is -1.0"),
        (lambda w, o: td.proximal_l1_([w], 1.0, -0.1), "lr is -0.1"),
        (lambda w, o: td.proximal_l1_(o, 1.0), "weight_decay_groups"),
        (lambda w, o: td.proximal_l1_(o, 1.0, 0.1), "leave lr out"),
    ],
)
def test_bad_input_to_soft_thresholding_is_refused(call, says):
    w = nn.Parameter(torch.ones(2))
    with pytest.raises(td.InputError, match=says):
        call(w, torch.optim.Adam([w]))
    assert w.tolist() == [1.0, 1.0]


def test_the_weight_of_new_parameters_follows_a_schedule_of_its_own(model):
    penalty = td.L2SP(model, 0.0, new="classifier.weight", new_weight=td.Linear(0.0, 0.8))
    half = sum(v * v for v in flat(model.classifier.weight)) / 2
    for progress in (0.0, 0.5, 1.0, 0.25):
        penalty.set_progress(progress)
        assert penalty().item() == pytest.approx(0.8 * progress * half, rel=1e-5)
