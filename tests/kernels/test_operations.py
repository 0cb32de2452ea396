"""Kernels as operations: what watches a training sees what runs otherwise, and the same numbers come out."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import transformer_dropout as td
from transformer_dropout.kernels import _operations as operations
from transformer_dropout.kernels._native import numba_installed, pure_pytorch
from transformer_dropout.kernels.attention import causal_attention
from transformer_dropout.kernels.dropout import dropout
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig


class Seen(TorchDispatchMode):
    """Remembers the names of all operations."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    """Watches functions, and lets them pass."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


WATCHES = {"dispatch": Seen, "functions": Functions, "flops": lambda: FlopCounterMode(display=False)}


@pytest.fixture(params=["pure", "native"])
def path(request):
    if request.param == "pure":
        with pure_pytorch():
            yield request.param
    elif not numba_installed():
        pytest.skip("numba is not installed")
    else:
        yield request.param


def qkv():
    return torch.randn(3, 1, 2, 9, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()


FUNCTIONS = {
    "dropout": lambda x: dropout(x[0], 0.3),
    "attention": lambda x: causal_attention(*x, 0.3),
    "attention, no rate": lambda x: causal_attention(*x),
}


def trained(function, watch=None):
    """Return a result, its gradient and the next random number."""
    x = qkv()
    torch.manual_seed(5)
    if watch is None:
        y = function(x)
        (gradient,) = torch.autograd.grad(y.square().sum(), x)
    else:
        with watch:
            y = function(x)
            (gradient,) = torch.autograd.grad(y.square().sum(), x)
    return y, gradient, torch.rand(())


@pytest.mark.parametrize("watch", WATCHES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_who_is_watched_computes_the_same_to_the_last_bit(path, name, watch):
    alone, watched = trained(FUNCTIONS[name]), trained(FUNCTIONS[name], WATCHES[watch]())
    assert all(torch.equal(a, b) for a, b in zip(alone, watched, strict=True))


def test_operations_carry_their_rate_and_say_that_they_draw(path):
    seen, x = Seen(), qkv()
    with seen:
        dropout(x[0], 0.3).sum().backward()
        causal_attention(*x, 0.3).sum().backward()
    kind = "native" if path == "native" else "chunked"
    ours = [name.split(".")[1] for name in seen.names if name.startswith("transformer_dropout")]
    assert ours == ["drawn_dropout", "keyed_dropout", f"{kind}_attention", f"{kind}_attention_backward"]
    assert not any("rand" in name for name in seen.names)
    for name in ("drawn_dropout", "native_attention", "chunked_attention"):
        packet = getattr(torch.ops.transformer_dropout, name)
        assert torch.Tag.nondeterministic_seeded in packet.default.tags


def test_flop_counters_count_attention(path):
    x = qkv()
    with FlopCounterMode(display=False) as counter:
        causal_attention(*x, 0.3).sum().backward()
    assert counter.get_total_flops() == (4 + 10) * 2 * 9**2 * 4
    # A counter of torch knows formulas under this name; where it did not, nothing would be counted.
    assert set(operations.FLOPS) <= set(counter.flop_registry)


def test_an_audit_sees_the_rate_of_each_kernel(path):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 12)

        def forward(self, x):
            q, k, v = self.linear(x).unflatten(-1, (3, 1, 4)).permute(2, 0, 3, 1, 4)
            return dropout(causal_attention(q, k, v, 0.4 if self.training else 0.0), 0.2 * self.training)

    with pure_pytorch() if path == "pure" else torch.enable_grad():
        audit = td.audit(Model(), torch.randn(8, 9, 4))
    assert [(event.kind, event.resolved) for event in audit.events] == [
        ("attention_weights", 0.4),
        ("attention_output", 0.2),
    ]
    assert all(abs(event.measured - event.resolved) < 0.1 for event in audit.events)
    assert all(event.operation.startswith("transformer_dropout.") for event in audit.events)


RULES = {
    "dropout": td.Rule("mlp_output", td.Dropout, p=0.3),
    "attention": td.Rule("attention_weights", td.Dropout, p=0.3),
    "learned": td.Rule("mlp_output", td.LearnedDropout, heads=2, shift=1.0, weight=0.1),
    "drop path": td.Rule("block", td.DropPath, p=0.3),
    "gaussian": td.Rule("mlp_output", td.GaussianDropout, p=0.3),
    "tokens": td.Rule("embedding", td.TokenDropout, p=0.3),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_watched_training_draws_what_an_unwatched_one_draws(rule):
    torch.manual_seed(0)
    model = Decoder(16, DecoderConfig(width=16, heads=2, blocks=2, context=8))
    handle = td.regularize_(model, td.Recipe([RULES[rule]]))
    tokens = torch.arange(32).reshape(4, 8) % 16
    losses, states = [], []
    for watch in (None, Seen()):
        twin, torch_state = copy.deepcopy(model).train(), torch.manual_seed(3).get_state()
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            with watch or torch.enable_grad():
                loss = twin(tokens, tokens)
                loss.backward()
            optimizer.step()
        losses.append(loss.item())
        states.append(torch.get_rng_state())
        assert not torch.equal(states[-1], torch_state)
    handle.remove()
    assert torch.equal(*states)
    # The masks are the same; products take another library while they are counted, which rounds otherwise.
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_watched_dropout_is_not_the_one_of_torch():
    x = torch.ones(64)
    torch.manual_seed(0)
    other = F.dropout(x, 0.5)
    for watch in (Seen(), torch.enable_grad()):
        torch.manual_seed(0)
        with watch:
            assert not torch.equal(dropout(x, 0.5), other)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_disabled_reaches_an_operation(name):
    class Model(nn.Module):
        def forward(self, x):
            return FUNCTIONS[name](x)

    with td.disabled(Model(), qkv()) as model:
        assert torch.equal(model(qkv()), model(qkv()))
