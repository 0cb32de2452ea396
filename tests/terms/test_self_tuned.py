"""Rates that follow what they do to held-out data: where they go, and what measuring leaves alone."""

import pytest
import torch
from torch import nn

import transformer_dropout as td
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig
from transformer_dropout.terms.self_tuned import alignment


def decoder(**rates):
    torch.manual_seed(0)
    model = Decoder(11, DecoderConfig(width=8, heads=2, blocks=2, context=8))
    rates = rates or {"mlp_output": 0.2, "attention_output": 0.1}
    return model, td.regularize_(model, td.Recipe([td.Rule(k, td.Dropout, p=p) for k, p in rates.items()]))


def loss_of(model, seed=0):
    tokens = torch.randint(11, (4, 9), generator=torch.Generator().manual_seed(seed))
    return lambda: model(tokens[:, :-1], tokens[:, 1:])


def test_the_alignment_is_the_cosine_of_the_angle():
    first, second = torch.randn(7), torch.randn(7)
    expected = nn.functional.cosine_similarity(first, second, dim=0)
    torch.testing.assert_close(alignment(first.split([3, 4]), second.split([3, 4])), expected)


def test_it_starts_at_the_rates_of_the_recipe_and_moves_those_of_a_kind_together():
    model, handle = decoder()
    tuned = td.SelfTuned(handle)
    assert tuned.rates == pytest.approx({"attention_output": 0.1, "mlp_output": 0.2})
    tuned.measure(loss_of(model), loss_of(model, 1))
    for placed in handle.placed:
        assert placed.layer.p == pytest.approx(tuned.rates[placed.site.kind])
    assert tuned.rates != pytest.approx({"attention_output": 0.1, "mlp_output": 0.2})
    handle.set_progress(0.7)
    assert handle.placed[0].layer.p == pytest.approx(tuned.rates[handle.placed[0].site.kind])


def test_a_measurement_tries_both_sides_of_each_rate_at_one_distance():
    model, handle = decoder()
    model.unused = nn.Parameter(torch.zeros(1))  # has no gradient, which is one of 0
    tuned = td.SelfTuned(handle)
    loss, start, tried = loss_of(model), tuned.logits(), []

    def training_loss():
        rates = {placed.site.kind: placed.layer.p for placed in handle.placed}
        tried.append(torch.tensor([rates[kind] for kind in tuned.rates], dtype=torch.float64).logit() - start)
        return loss()

    tuned.measure(training_loss, loss_of(model, 1))
    torch.testing.assert_close(tried[0], -tried[1])
    torch.testing.assert_close(tried[0].abs(), torch.full_like(start, tuned.delta))


def test_a_measurement_leaves_gradients_modes_and_random_numbers_alone():
    model, handle = decoder()
    tuned = td.SelfTuned(handle)
    loss_of(model)().backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    tuned.measure(loss_of(model), loss_of(model, 1))
    assert torch.equal(torch.rand(3), expected)
    assert model.training
    assert all(torch.equal(p.grad, before[name]) for name, p in model.named_parameters())


class Pair(nn.Module):
    """Two inputs with a weight each: one tells the target, one is noise that the training data fit."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 1.0]))
        self.dropout = nn.Dropout(0.2)

    def forward(self, x):
        return self.dropout(x) @ self.weight


class ByHand:
    """Stands for a handle: the loss is given as a function of the rate."""

    def __init__(self, model, p):
        self.model, self.layer = model, td.Dropout(p)
        site = td.Site(path="a", kind="mlp_output", access="output", n_blocks=1, width=2)
        self.placed = [type("Placed", (), {"layer": self.layer, "site": site})]

    def update(self, rates):
        self.layer.set_rate(rates["mlp_output"])


@pytest.mark.parametrize(("start", "best"), [(0.05, 0.4), (0.8, 0.4), (0.2, 0.05)])
def test_it_climbs_to_the_rate_at_which_steps_help_most(start, best):
    """The training gradient turns away from the held-out one as the rate leaves the best one."""
    model = Pair()
    handle = ByHand(model, start)
    tuned = td.SelfTuned(handle, step=0.2)

    def training_loss():
        angle = handle.layer.p - best + 0.05 * torch.randn(()).item()
        return model.weight[0] + angle * model.weight[1]

    for _ in range(150):
        tuned.measure(training_loss, lambda: model.weight[0] * 1.0)
    assert tuned.rates["mlp_output"] == pytest.approx(best, abs=0.12)


def test_it_continues_from_its_state():
    runs = []
    for resumed in (False, True):
        model, handle = decoder()
        tuned = td.SelfTuned(handle)
        for step in range(4):
            if resumed and step == 2:
                state = tuned.state_dict()
                tuned = td.SelfTuned(handle)
                tuned.load_state_dict(state)
            torch.manual_seed(step)
            tuned.measure(loss_of(model, step), loss_of(model, 9))
        runs.append(tuned.rates)
    assert runs[0] == runs[1]
    with pytest.raises(td.InputError, match="other kinds of sites"):
        td.SelfTuned(decoder(embedding=0.1)[1]).load_state_dict(tuned.state_dict())


def test_without_rates_or_with_no_step_it_is_refused():
    model = Decoder(11, DecoderConfig(width=8, heads=2, blocks=1, context=8))
    learned = td.regularize_(model, td.Recipe([td.Rule("mlp_output", td.LearnedDropout, heads=2)]))
    with pytest.raises(td.InputError, match="has a rate"):
        td.SelfTuned(learned)
    with pytest.raises(td.InputError, match="step is 0"):
        td.SelfTuned(decoder()[1], step=0)


def test_a_move_is_a_step_along_the_sign_in_units_of_the_usual_difference():
    tuned = td.SelfTuned(decoder(mlp_output=0.5)[1], step=0.2)
    zero, sign = torch.zeros(1, dtype=torch.float64), torch.tensor([-1.0], dtype=torch.float64)
    tuned.move(zero, sign, 0.0)
    assert tuned.rates == {"mlp_output": 0.5}
    tuned = td.SelfTuned(decoder(mlp_output=0.5)[1], step=0.2)
    # The usual difference is 0.3, then 0.57 and 0.523; no move is longer than two of it.
    for difference, logit in ((0.3, -0.2), (-3.0, 0.4), (0.1, -0.2 * 0.1 / 0.523)):
        tuned.move(zero, sign, difference)
        assert tuned.rates["mlp_output"] == pytest.approx(torch.tensor(logit).sigmoid().item(), rel=1e-5)


@pytest.mark.parametrize(("difference", "end"), [(1.0, 0.9), (-1.0, 0.005)])
def test_rates_stay_away_from_where_a_logit_has_no_value(difference, end):
    tuned = td.SelfTuned(decoder(mlp_output=0.5)[1], step=99.0)
    tuned.move(tuned.logits(), torch.ones(1, dtype=torch.float64), difference)
    assert tuned.rates["mlp_output"] == pytest.approx(end)
    for start in (0.0, 1.0):
        logit = td.SelfTuned(decoder(mlp_output=start)[1]).logits().item()
        assert logit == pytest.approx(torch.tensor(0.9 if start else 0.005).logit().item(), rel=1e-5)


@pytest.mark.parametrize("mode", [True, False])
def test_it_measures_on_both_sides_of_the_rate_and_on_held_out_data_without_noise(mode):
    model, handle = decoder(mlp_output=0.5)
    model.train(mode)
    tuned, seen = td.SelfTuned(handle, delta=1.0), []

    def watched(name, seed):
        def loss():
            seen.append((name, model.training, round(handle.placed[0].layer.p, 3)))
            return loss_of(model, seed)()

        return loss

    tuned.measure(watched("training", 0), watched("held out", 1))
    assert model.training is mode
    assert seen[0] == ("held out", False, 0.5)
    assert set(seen[1:]) == {("training", True, 0.731), ("training", True, 0.269)}
