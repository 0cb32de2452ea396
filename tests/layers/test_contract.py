"""What every layer of `layers.__all__` promises; a new layer is covered by its export alone."""

import copy
import inspect
import io

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from transformer_dropout import layers
from transformer_dropout.errors import InputError

WIDTH, HEADS, TOKENS = 8, 2, 5
# What a constructor may ask for. A shift in the middle makes masks that are neither all 1 nor all 0.
GIVEN = {"p": 0.5, "width": WIDTH, "heads": HEADS, "shift": 1.2, "std": 0.5, "block": 2}

NAMES = layers.__all__
RATE_NAMES = [name for name in NAMES if issubclass(getattr(layers, name), layers.RateLayer)]
# These promise something else than dropout does there; the tests in their own files say what.
NOT_ZEROS_AT_P_ONE = {"DropKey"}
OTHER_EXPECTATION = {"AlphaDropout", "DropHead", "DropKey", "LayerDrop"}
OTHER_SHARE_OF_ZEROS = {"AlphaDropout", "DropKey", "GaussianDropout", "LayerDrop"}
# These draw nothing.
DETERMINISTIC = {"LearnedSigmoidDropout", "LearnedSigmoidStraightThrough", "LearnedSoftGate", "SparseReLU"}
# These report a penalty by default.
PENALTY_NAMES = [
    name
    for name in NAMES
    if getattr(layers, name).has_penalty or "penalty" in inspect.signature(getattr(layers, name)).parameters
]


class Host(nn.Module):
    """Runs one layer as a model would: what the layer shares with others sees the embeddings first."""

    def __init__(self, name, **overrides):
        super().__init__()
        kind = getattr(layers, name)
        torch.manual_seed(0)
        self.source = kind.shared_source and kind.shared_source(WIDTH, HEADS).requires_grad_(False)
        self.layer = build(kind, {"source": self.source} | overrides)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.6)
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, WIDTH))  # something to train before any layer
        self.checkpointed = False

    def forward(self, x):
        x = x * self.weight
        if self.source is not None:
            self.source(x)
        return checkpoint(self.layer, x, use_reentrant=False) if self.checkpointed else self.layer(x)


def split_heads(module, arguments):
    return arguments[0].unflatten(-1, (HEADS, -1)).transpose(1, 2)


def join_heads(module, arguments, output):
    return output.transpose(1, 2).flatten(2)


def build(kind, overrides):
    values = GIVEN | overrides
    parameters = inspect.signature(kind).parameters
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in values]
    if missing:
        pytest.fail(f"{kind.__name__} needs {missing}, which this test cannot give: add them to GIVEN.")
    layer = kind(**{name: value for name, value in values.items() if name in parameters})
    if kind is layers.DropHead:  # the one that takes no tensor (batch, tokens, width)
        layer.register_forward_pre_hook(split_heads)
        layer.register_forward_hook(join_heads)
    return layer


def example(seed=1, batch=3, dtype=torch.float32):
    torch.manual_seed(seed)
    return torch.randn(batch, TOKENS, WIDTH, dtype=dtype)


def seeded(host, x, seed=7):
    torch.manual_seed(seed)
    return host(x)


def loss_of(host, x, seed=7):
    """Return a loss that weighs every element differently, with the penalty if there is one."""
    output = seeded(host, x, seed)
    loss = (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum()
    return loss + 10 * host.layer.take_penalty() if host.layer.has_penalty else loss


def gradients(host, x):
    """Return the gradients that have gathered on the parameters, and the input's."""
    found = {name: p.grad for name, p in host.named_parameters() if p.grad is not None}
    return found | {"input": x.grad}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_is_a_dropout_layer_in_a_file_of_its_own(name):
    kind = getattr(layers, name)
    assert issubclass(kind, layers.DropoutLayer)
    same_file = [other for other in NAMES if getattr(layers, other).__module__ == kind.__module__]
    assert same_file == [name]


@pytest.mark.parametrize("name", RATE_NAMES)
def test_a_rate_layer_is_the_identity_in_evaluation(name):
    layer, x = Host(name, p=0.9).eval().layer, example()
    assert torch.equal(layer(x), x)


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_that_promises_silence_is_the_identity_in_evaluation_and_no_other_is(name):
    host, x = Host(name), example()
    if name == "LearnedMarginalDropout":  # untrained, it keeps every channel alike
        torch.nn.init.uniform_(host.layer.rates)
    layer = host.eval().layer
    if layer.shared_source is not None:
        layer._source[0](x)
    assert torch.equal(layer(x), x) == layer.silent_in_evaluation


def test_a_promise_about_the_forward_does_not_pass_to_a_subclass_with_another():
    class Louder(layers.Dropout):
        def forward(self, x):
            return 2 * super().forward(x)

    class Renamed(layers.Dropout):
        pass

    assert (Louder.is_plain_dropout, Louder.silent_in_evaluation) == (False, False)
    assert (Renamed.is_plain_dropout, Renamed.silent_in_evaluation) == (True, True)


@pytest.mark.parametrize("name", RATE_NAMES)
@pytest.mark.parametrize("compiled", [False, True])
def test_p_zero_keeps_everything_and_p_one_nothing(name, compiled):
    x = example()
    for p, expected in ((0.0, x), (1.0, torch.zeros_like(x))):
        if p == 1.0 and name in NOT_ZEROS_AT_P_ONE:
            continue
        layer = Host(name, p=p).layer
        run = torch.compile(layer, backend="eager") if compiled else layer
        assert torch.equal(run(x), expected)


@pytest.mark.parametrize("name", [name for name in RATE_NAMES if name not in OTHER_EXPECTATION])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_a_rate_layer_keeps_the_expectation(name, compiled, p):
    layer = Host(name, p=p).layer
    run = torch.compile(layer, backend="eager") if compiled else layer
    draws = seeded(run, torch.ones(160_000, 1, WIDTH))
    # A layer that drops whole samples draws least, 160,000 times; the standard error of the mean is then
    # sqrt(p / (1 - p) / n), 0.005 at p = 0.8.
    assert abs(draws.mean() - 1) < 0.025


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_shape_and_dtype_stay(name, training, dtype):
    host, x = Host(name).to(dtype).train(training), example(dtype=dtype).requires_grad_()
    output = host(x)
    output.sum().backward()
    assert (output.shape, output.dtype) == (x.shape, dtype)
    assert output.isfinite().all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_output_and_another_seed_another(name):
    host, x = Host(name), example()
    assert torch.equal(seeded(host, x), seeded(host, x))
    if name in DETERMINISTIC:
        assert torch.equal(seeded(host, x), seeded(host, x, seed=8))
        return
    # A layer that drops all or nothing does the same under many seeds, but not under all of them.
    assert any(not torch.equal(seeded(host, x), seeded(host, x, seed)) for seed in range(8, 20))


@pytest.mark.parametrize("name", NAMES)
def test_a_disabled_gradient_changes_no_value(name):
    host, x = Host(name), example()
    expected = seeded(host, x)
    with torch.no_grad():
        assert torch.equal(seeded(host, x), expected)


def copied(host):
    return copy.deepcopy(host)


def pickled(host):
    torch.save(host, buffer := io.BytesIO())
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", [copied, pickled])
def test_a_copy_acts_the_same_and_stands_alone(name, way):
    host, x = Host(name), example()
    expected = seeded(host, x)
    host.layer.observer = lambda *seen: None  # as while statistics are counted
    twin = way(host)  # after a forward, when the slot holds a part of the graph
    assert twin.layer.pending_penalty is None
    assert twin.layer.observer is None
    assert torch.equal(seeded(twin, x), expected)
    shared = {t.data_ptr() for t in host.parameters()} & {t.data_ptr() for t in twin.parameters()}
    assert not shared
    if name in RATE_NAMES:
        twin.layer.set_rate(1.0)
        assert (host.layer.p, host.layer.rate.item()) == (GIVEN["p"], GIVEN["p"])


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()  # the compiler looks at .grad of its inputs, which warns where they are no leaves
def test_a_compiled_layer_can_be_copied(name):
    host, x = Host(name), example()
    host.layer.compile(backend="eager")
    host(x)
    twin = copy.deepcopy(host)
    assert twin.layer._compiled_call_impl is None
    # Attention in a compiled graph and outside of it may differ in the last bit.
    torch.testing.assert_close(seeded(twin.eval(), x), seeded(host.eval(), x))


@pytest.mark.parametrize("name", NAMES)
def test_the_state_dict_carries_everything_that_is_learned(name):
    host, other, x = Host(name), Host(name), example()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter))
    other.load_state_dict(host.state_dict(), strict=True)
    assert torch.equal(seeded(other, x), seeded(host, x))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_equal_under_activation_checkpointing(name):
    results, calls = [], []
    for checkpointed in (False, True):
        host, x = Host(name), example().requires_grad_()
        host.checkpointed = checkpointed
        host.layer.register_forward_pre_hook(lambda *_: calls.append(1))
        loss_of(host, x).backward()
        results.append(gradients(host, x))
    # Once plain; once and once again under checkpointing, unless the backward pass needs nothing saved.
    assert len(calls) == 1 + (1 if name == "GaussianNoise" else 2)
    assert results[0].keys() == results[1].keys()
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, rtol=1e-6, atol=1e-7, msg=key)


@pytest.mark.parametrize("name", PENALTY_NAMES)
def test_a_recomputation_keeps_no_penalty_alive(name):
    host, x = Host(name), example().requires_grad_()
    host.checkpointed = True
    loss_of(host, x).backward()
    assert host.layer.pending_penalty is None


@pytest.mark.parametrize("name", PENALTY_NAMES)
def test_reentrant_checkpointing_is_refused_where_it_would_lose_the_penalty(name):
    host, x = Host(name), example().requires_grad_()
    if host.source is not None:
        host.source(x)
    checkpoint(host.layer, x, use_reentrant=True)
    with pytest.raises(InputError, match="use_reentrant=False"):
        host.layer.take_penalty()


@pytest.mark.parametrize("name", NAMES)
def test_accumulated_gradients_are_the_sum_of_those_of_each_batch(name):
    batches = [example(seed) for seed in (1, 2, 3)]
    together, apart = Host(name), []
    for seed, x in enumerate(batches):
        loss_of(together, x, seed).backward()
        alone = Host(name)
        loss_of(alone, x, seed).backward()
        apart.append({n: p.grad for n, p in alone.named_parameters() if p.grad is not None})
    gathered = {n: p.grad for n, p in together.named_parameters() if p.grad is not None}
    assert gathered.keys() == apart[0].keys()
    for key, value in gathered.items():
        torch.testing.assert_close(value, sum(single[key] for single in apart), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_moving_schedule_compiles_once(name, backend):
    host, x = Host(name), example()
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    run = torch.compile(host, backend=counter, fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(14):
            if name in RATE_NAMES:
                host.layer.set_rate(step / 20)
            run(x).sum()
            if host.layer.has_penalty:
                host.layer.take_penalty()
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", [name for name in RATE_NAMES if name not in OTHER_SHARE_OF_ZEROS])
def test_a_compiled_layer_drops_at_the_rate_that_was_set_last(name):
    host = Host(name)
    run, x = torch.compile(host, backend="eager"), torch.ones(40_000, 1, WIDTH)
    for p in (0.0, 0.3, 0.9, 1.0):
        host.layer.set_rate(p)
        assert abs((run(x) == 0).float().mean() - p) < 0.01


@pytest.mark.parametrize("name", PENALTY_NAMES)
def test_compiled_gradients_equal_eager_ones(name):
    # The backend aot_eager draws the same noise as eager code; a rate layer draws other masks there.
    results = []
    for compiled in (False, True):
        host, x = Host(name), example().requires_grad_()
        if compiled:
            host.compile(backend="aot_eager")
        loss_of(host, x).backward()
        results.append(gradients(host, x))
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, rtol=1e-5, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", PENALTY_NAMES)
def test_of_two_forwards_without_gradients_the_last_leaves_its_penalty(name):
    host = Host(name)
    with torch.no_grad():
        seeded(host, example(1))
        seeded(host, example(2), 8)
        found = host.layer.take_penalty()
        seeded(host, example(2), 8)
        assert torch.equal(found, host.layer.take_penalty())
