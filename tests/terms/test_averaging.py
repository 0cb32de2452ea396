import copy

import pytest
import torch
from torch import nn

import transformer_dropout as td


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def move(module, by=1.0):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(by * torch.randn_like(parameter))


def test_it_is_the_formula_begun_by_the_first_step():
    trained = model()
    ema, expected = td.EMA(trained, 0.8), None
    for _ in range(7):
        move(trained)
        ema.after_step()
        weights = [p.detach().clone() for p in trained.parameters()]
        if expected is None:
            expected = weights
        else:
            expected = [0.8 * a + 0.2 * w for a, w in zip(expected, weights, strict=True)]
    for found, wanted in zip(ema.model.parameters(), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_the_average_is_evaluated_and_the_weights_come_back():
    trained = model().eval()
    ema, x = td.EMA(trained, 0.5), torch.randn(5, 3)
    for _ in range(3):
        move(trained)
        ema.after_step()
    own, averaged = trained(x), ema.model(x)
    assert not torch.allclose(own, averaged)
    assert not ema.model.training and not any(p.requires_grad for p in ema.model.parameters())
    with ema.averaged_weights():
        torch.testing.assert_close(trained(x), averaged)
    assert torch.equal(trained(x), own)


def test_the_weights_come_back_after_a_fault():
    trained = model()
    ema = td.EMA(trained)
    move(trained), ema.after_step(), move(trained)
    before = copy.deepcopy(trained.state_dict())
    with pytest.raises(KeyError), ema.averaged_weights():
        raise KeyError
    for name, value in trained.state_dict().items():
        assert torch.equal(value, before[name])


def test_buffers_are_those_of_the_trained_model():
    trained = model()
    ema = td.EMA(trained)
    trained(torch.randn(50, 3) + 4)
    ema.after_step()
    assert torch.equal(ema.model[1].running_mean, trained[1].running_mean)


def test_a_schedule_moves_the_decay():
    ema = td.EMA(model(), td.Linear(0.0, 0.9))
    assert ema.decay == 0.0
    ema.set_progress(0.5)
    assert ema.decay == pytest.approx(0.45)
    with pytest.raises(td.InputError, match="below 1"):
        td.EMA(model(), 1.0)


def test_it_continues_from_its_state():
    first, second = model(), model()
    ema, other = td.EMA(first, 0.7), td.EMA(second, 0.7)
    move(first), ema.after_step(), move(first), ema.after_step()
    other.load_state_dict({name: value.clone() for name, value in ema.state_dict().items()})
    second.load_state_dict(first.state_dict())
    torch.manual_seed(1), move(first), ema.after_step()
    torch.manual_seed(1), move(second), other.after_step()
    for a, b in zip(ema.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(td.InputError, match="n_averaged"):
        other.load_state_dict(first.state_dict())


def test_before_the_first_step_there_is_no_average():
    with pytest.raises(td.InputError, match="before the first step"), td.EMA(model()).averaged_weights():
        pass


def test_a_regularized_model_is_averaged_with_its_learned_masks(tmp_path):
    from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig

    torch.manual_seed(0)
    trained = Decoder(11, DecoderConfig(width=8, heads=2, blocks=2, context=8))
    td.regularize_(trained, td.Recipe([td.Rule("mlp_output", td.PrecomputedLearnedDropout, heads=2)]))
    tokens = torch.randint(11, (3, 8))
    trained(tokens)
    ema = td.EMA(trained, 0.9)
    move(trained, 0.1), ema.after_step(), move(trained, 0.1), ema.after_step()
    averaged = ema.model(tokens)
    with ema.averaged_weights():
        torch.testing.assert_close(trained.eval()(tokens), averaged)
