import pytest
import torch

import transformer_dropout as td
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig
from transformer_dropout.terms.held_out import HeldOutGates, gate_parameters, held_out_split


def decoder(layer=td.LearnedDropout, **words):
    torch.manual_seed(0)
    model = Decoder(11, DecoderConfig(width=8, heads=2, blocks=2, context=8))
    rule = td.Rule("mlp_output", layer, heads=2, shift=1.2, weight=0.1, **words)
    return model, td.regularize_(model, td.Recipe([rule]))


def batch(seed):
    tokens = torch.randint(11, (3, 9), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


def test_parameters_are_split_into_weights_and_gates():
    model, handle = decoder()
    weights, gates = gate_parameters(model)
    inside = {p for placed in handle.placed for p in placed.layer.parameters()}
    assert set(gates) == inside and len(gates) == 4
    assert set(weights) == set(model.parameters()) - inside


@pytest.mark.parametrize(("detach", "count"), [(True, 4), (False, 6)])
def test_what_gates_share_is_theirs_where_it_is_trained(detach, count):
    model, _ = decoder(td.PrecomputedLearnedDropout, detach=detach)
    assert len(gate_parameters(model)[1]) == count


def test_each_kind_has_the_gradient_of_its_own_data():
    model, handle = decoder()
    held_out = HeldOutGates(model)

    def loss(seed):
        torch.manual_seed(seed)
        value = model(*batch(seed))
        return value + handle.penalty()

    held_out.backward(loss(1), lambda: loss(2))
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    gates = {id(p) for p in held_out.gates}
    for seed in (1, 2):
        model.zero_grad()
        loss(seed).backward()
        for name, p in model.named_parameters():
            if (id(p) in gates) == (seed == 2):
                torch.testing.assert_close(found[name], p.grad, msg=name)
                assert p.grad.abs().sum() > 0


def test_a_model_without_gates_is_refused():
    model = Decoder(11, DecoderConfig(width=8, heads=2, blocks=1, context=8))
    td.regularize_(model, td.Recipe([td.Rule("mlp_output", td.Dropout, p=0.1)]))
    with pytest.raises(td.InputError, match=r"td\.LearnedDropout"):
        HeldOutGates(model)


@pytest.mark.parametrize(("count", "share", "held"), [(100, 0.1, 10), (3, 0.01, 1), (2, 0.9, 1)])
def test_a_split_holds_out_a_share_and_loses_nothing(count, share, held):
    weights, gates = held_out_split(count, share, seed=3)
    assert len(gates) == held
    assert sorted([*weights.tolist(), *gates.tolist()]) == list(range(count))
    again = held_out_split(count, share, seed=3)
    assert torch.equal(again[1], gates)
    if count == 100:
        assert not torch.equal(held_out_split(count, share, seed=4)[1], gates)


@pytest.mark.parametrize(("count", "share"), [(10, 0.0), (10, 1.0), (1, 0.5)])
def test_a_split_that_cannot_be_is_refused(count, share):
    with pytest.raises(td.InputError):
        held_out_split(count, share)


# --- two halves


def cross_fitted():
    torch.manual_seed(0)
    model = Decoder(11, DecoderConfig(width=8, heads=2, blocks=1, context=8))
    rule = td.Rule("mlp_output", td.CrossFittedDropout, heads=2, anchor_p=0.3, weight=0.1)
    handle = td.regularize_(model, td.Recipe([rule]))
    layer = handle.placed[0].layer
    torch.nn.init.normal_(layer.qkv.weight, std=0.6)
    return model, layer


def test_each_gate_learns_from_the_half_that_the_other_one_masks():
    model, layer = cross_fitted()
    gates, (tokens, targets) = td.CrossFittedGates(model), batch(1)

    def loss():
        # Of the first half alone: sequences 0 and 2.
        return model(tokens[::2].repeat_interleave(2, 0), targets[::2].repeat_interleave(2, 0))

    masks = []
    layer.observer = lambda keep_probability, mask: masks.append(keep_probability.detach())
    gates.backward(loss(), loss)
    assert not layer.turned
    # The same sequences stood in both halves, so their masks have changed places.
    torch.testing.assert_close(masks[0][::2], masks[1][1::2])
    assert not torch.allclose(masks[0], masks[1])
    assert all(p.grad is not None for p in model.parameters())

    # Where only the first half has a loss, the first gate masks it and the second one learns.
    def of_first_half():
        logits = model(torch.cat([tokens[:1], tokens[1:2]]))
        return logits[0].log_softmax(-1).gather(-1, targets[0][:, None]).mean()

    model.zero_grad()
    gates.backward(of_first_half(), of_first_half)
    of_both = layer.qkv.weight.grad.view(3, 2, 8, 8).abs().amax(dim=(0, 2, 3))
    assert of_both[0] == 0 and of_both[1] > 0


def test_halves_are_turned_back_after_a_fault_and_others_refused():
    model, layer = cross_fitted()

    def fails():
        assert layer.turned
        raise KeyError

    with pytest.raises(KeyError):
        td.CrossFittedGates(model).backward(model(*batch(1)), fails)
    assert not layer.turned
    with pytest.raises(td.InputError, match="as a function"):
        td.CrossFittedGates(model).backward(model(*batch(1)), model(*batch(1)))
    with pytest.raises(td.InputError, match="no CrossFittedDropout"):
        td.CrossFittedGates(decoder()[0])
