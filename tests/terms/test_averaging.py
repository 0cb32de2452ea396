import copy
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import transformer_dropout as td
from transformer_dropout.kernels.sharded import whole


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


# --- shards


class Tied(nn.Module):
    """Two blocks, and an output that has the weight of the input."""

    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(4, 6, bias=False), nn.Linear(4, 6, bias=False)
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.out.weight = self.into.weight

    def forward(self, x):
        y = self.into(x)
        for block in self.blocks:
            y = y + block(y).tanh()
        return y + self.out(x)


def trained_with_average(share, steps=3):
    """Train a few steps, evaluate under the average after each, and go on; return what there was to see."""
    torch.manual_seed(0)
    model, x = Tied(), torch.randn(8, 4)
    ema = td.EMA(model, 0.7)
    share(model)
    optimizer, evaluated = torch.optim.AdamW(model.parameters(), lr=0.1), []
    for _ in range(steps):
        model(x).square().mean().backward()
        optimizer.step(), optimizer.zero_grad()
        ema.after_step()
        # A forward without a backward leaves whole parameters in the root.
        own = model(x).detach()
        with torch.no_grad(), ema.averaged_weights():
            evaluated.append(model(x))
        assert torch.equal(model(x), own)
    state = ema.state_dict()
    weights = {name: whole(p.detach()).clone() for name, p in model.named_parameters()}
    twice = td.EMA(again := Tied(), 0.7)
    share(again)
    twice.load_state_dict(state)
    with torch.no_grad(), twice.averaged_weights():
        assert torch.equal(again(x), evaluated[-1])
    return evaluated, state, weights


def blocks_and_root(model):
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)


def two_processes():
    """The worker of the test below."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = [trained_with_average(share) for share in (blocks_and_root, fully_shard)]
    with pytest.raises(td.InputError, match="make the EMA before fully_shard"):
        td.EMA(fully_shard(Tied()))
    torch.save(found, f"{sys.argv[1]}.{dist.get_rank()}")
    dist.destroy_process_group()


@pytest.mark.slow
def test_weights_that_two_processes_shard_are_averaged_as_those_of_one(tmp_path, environment):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    file = str(tmp_path / "found")
    done = subprocess.run([*command, __file__, file], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = trained_with_average(lambda model: None)
    for rank in range(2):
        for found in torch.load(f"{file}.{rank}"):
            torch.testing.assert_close(found, expected)


if __name__ == "__main__":
    two_processes()
