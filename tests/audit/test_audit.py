"""What an audit sees of hand-written models, and that it leaves no trace."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

import transformer_dropout as td
from transformer_dropout.audit import _observe, assert_clean
from transformer_dropout.audit._places import block_paths
from transformer_dropout.audit.tiny_models import tiny_inputs, tiny_model
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig

X = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))


class Function(nn.Module):
    """Runs one function inside a module."""

    def __init__(self, function, **attributes):
        super().__init__()
        self.function = function
        self.linear = nn.Linear(8, 8)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.function(self, self.linear(x))


def events(function, inputs=X, **attributes):
    return td.audit(Function(function, **attributes), inputs).events


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: F.dropout(x, 0.3, m.training),
        lambda m, x: F.dropout(x, p=0.3, training=m.training, inplace=True),
        lambda m, x: F.alpha_dropout(x, 0.3, m.training),
        lambda m, x: F.feature_alpha_dropout(x, 0.3, m.training),
        lambda m, x: F.dropout1d(x, 0.3, m.training),
        lambda m, x: torch.dropout(x, 0.3, m.training),
        lambda m, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.3 if m.training else 0.0),
    ],
)
def test_dropout_functions_are_seen_in_training_only(function):
    (event,) = events(function)
    assert (event.path, event.training, event.resolved) == ("", True, 0.3)
    assert 0.05 < event.measured < 0.65


@pytest.mark.parametrize("function", [F.dropout, torch.dropout])
def test_a_rate_of_one_draws_nothing_and_is_seen(function):
    (event,) = events(lambda m, x: function(x, 1.0, m.training))
    assert (event.resolved, event.measured) == (1.0, 1.0)


def test_a_rate_of_zero_is_no_event():
    assert events(lambda m, x: F.dropout(x, 0.0, m.training)) == ()


def test_attention_inside_a_composite_function_is_seen():
    model = nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True)
    (event,) = td.audit(model, (X, X, X)).events
    assert (event.operation, event.kind) == ("F.multi_head_attention_forward", "attention_weights")
    assert (event.configured, event.source, event.resolved) == (0.3, "dropout", 0.3)


def test_recurrent_dropout_is_seen():
    model = nn.LSTM(8, 8, num_layers=2, dropout=0.3, batch_first=True)
    (event,) = td.audit(model, X).events
    assert (event.operation, event.resolved, event.configured) == ("torch.lstm", 0.3, 0.3)
    assert event.kind == "mlp_hidden"


class Recurrent(nn.Module):
    """Two recurrences and a head over their last states, with a dropout before each."""

    def __init__(self, kind):
        super().__init__()
        self.table, self.drop = nn.Embedding(16, 8), nn.Dropout(0.3)
        self.first = kind(8, 8, batch_first=True)
        self.second = kind(8, 8, num_layers=2, dropout=0.2, batch_first=True)
        self.end = nn.Linear(8, 3)

    def forward(self, tokens):
        x = self.first(self.drop(self.table(tokens)))[0]
        x = self.second(self.drop(x))[0]
        return self.end(self.drop(x[:, -1])).log_softmax(-1)


class Cells(Recurrent):
    """The same token by token."""

    def forward(self, tokens):
        first = second = None
        for x in self.table(tokens).unbind(1):
            first = self.first(self.drop(x), first)
            second = self.second(self.drop(first), second)
        return self.end(self.drop(second))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_model_has_hidden_states_between_its_embedding_and_its_head(kind):
    events = td.audit(Recurrent(kind), TOKENS).events
    assert [event.kind for event in events] == ["embedding", "mlp_hidden", "mlp_hidden", "classifier"]


def test_so_has_one_that_steps_from_token_to_token():
    model = Cells(nn.GRU)
    model.first, model.second = nn.GRUCell(8, 8), nn.GRUCell(8, 8)
    events = td.audit(model, TOKENS).events
    assert [event.kind for event in events] == [*["embedding", "mlp_hidden"] * 6, "classifier"]


def test_stochastic_depth_is_a_block():
    def drop_path(m, x):
        return x * x.new_empty(x.shape[0], 1, 1).bernoulli_(1 - m.drop_prob) if m.training else x

    (event,) = events(drop_path, drop_prob=0.25)
    assert (event.operation, event.kind) == ("Tensor.bernoulli_", "block")
    assert (event.configured, event.resolved) == (0.25, 0.25)


class Attention(nn.Module):
    """Attention written by hand, whose names say nothing."""

    def __init__(self, weights):
        super().__init__()
        self.one, self.two, self.three, self.four = (nn.Linear(8, 8) for _ in range(4))
        self.weights = weights

    def forward(self, x, drop):
        scores = drop("attention_scores", self.one(x) @ self.two(x).mT / 8**0.5)
        weights = drop("attention_weights", self.weights(scores))
        return drop("attention_output", self.four(weights @ self.three(x)))


class Block(nn.Module):
    """A block that drops at one place."""

    def __init__(self, weights=lambda scores: scores.softmax(-1), gated=False):
        super().__init__()
        self.thing = Attention(weights)
        self.up, self.gate, self.down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)
        self.first, self.second, self.gated = nn.LayerNorm(8), nn.LayerNorm(8), gated

    def forward(self, x, drop):
        x = x + drop("block", self.thing(self.first(x), drop))
        y = self.second(x)
        hidden = F.silu(self.gate(y)) * self.up(y) if self.gated else F.gelu(self.up(y))
        return x + drop("mlp_output", self.down(drop("mlp_hidden", hidden)))


class Whole(nn.Module):
    """Two blocks between an embedding and a head; its one dropout acts where it is told to."""

    def __init__(self, place, *, drop=F.dropout, **options):
        super().__init__()
        self.table, self.place, self.function = nn.Embedding(16, 8), place, drop
        self.a, self.b = Block(**options), Block(**options)
        self.norm, self.middle, self.end = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 3)

    def drop(self, place, x):
        return self.function(x, 0.3, self.training) if place == self.place else x

    def forward(self, tokens):
        x = self.drop("embedding", self.table(tokens) + self.table(torch.arange(tokens.shape[1])))
        x = self.norm(self.b(self.a(x, self.drop), self.drop))
        return self.end(self.drop("classifier", torch.tanh(self.middle(x.mean(1)))))


TOKENS = torch.arange(24).reshape(4, 6) % 16


def mask_of_rand(x, p, training):
    return x * (torch.rand_like(x) > p) / (1 - p) if training else x


def mask_of_bernoulli(x, p, training):
    return x.mul(torch.empty_like(x).bernoulli_(1 - p).div_(1 - p)) if training else x


def mask_of_ones(x, p, training):
    return x * F.dropout(torch.ones_like(x), p, training)


def filled(x, p, training):
    return x.masked_fill(torch.rand(x.shape) < p, 0) / (1 - p) if training else x


def drop_path(x, p, training):
    return x.div(1 - p) * (1 - p + torch.rand(len(x), 1, 1)).floor_() if training else x


PLACES = (
    "embedding",
    "attention_weights",
    "attention_output",
    "attention_scores",
    "mlp_hidden",
    "mlp_output",
    "classifier",
)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("drop", [F.dropout, mask_of_rand, mask_of_bernoulli, mask_of_ones, filled])
@pytest.mark.parametrize("place", PLACES)
def test_a_kind_is_told_by_what_the_data_do_whoever_drops(place, drop, gated):
    events = td.audit(Whole(place, drop=drop, gated=gated), TOKENS).events
    assert {event.kind for event in events} == {place}
    assert len(events) == (1 if place in ("embedding", "classifier") else 2)
    assert all(0.02 < event.measured < 0.7 for event in events)


def test_a_mask_of_whole_samples_is_a_block():
    assert {event.kind for event in td.audit(Whole("block", drop=drop_path), TOKENS).events} == {"block"}
    assert {event.kind for event in td.audit(Whole("mlp_output", drop=drop_path), TOKENS).events} == {"block"}


@pytest.mark.parametrize(
    "weights",
    [
        # A sink takes part of the weight: the rows sum to less than 1.
        lambda scores: F.pad(scores, (0, 1)).softmax(-1)[..., :-1],
        lambda scores: scores.relu() / 6,
        lambda scores: scores.sigmoid(),
        lambda scores: (scores + torch.zeros(6, 6).masked_fill(torch.ones(6, 6).triu(1) > 0, -1e9)).softmax(
            -1
        ),
    ],
    ids=["sink", "relu", "sigmoid", "causal"],
)
def test_attention_weights_of_any_function_are_known(weights):
    model = Whole("attention_weights", weights=weights)
    assert {event.kind for event in td.audit(model, TOKENS).events} == {"attention_weights"}


def test_names_that_lie_are_not_believed():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.dropout = nn.Linear(8, 8), nn.Dropout(0.3)

        def forward(self, x):
            return x + self.dropout(self.linear(F.relu(self.linear(x))))

    model = nn.Sequential(nn.Linear(8, 8), nn.ModuleDict({"attn": Attention()})["attn"])
    assert [event.kind for event in td.audit(model, X).events] == ["mlp_output"]


def test_noise_is_random_without_a_rate():
    (event,) = events(lambda m, x: x + torch.randn_like(x) if m.training else x)
    assert (event.operation, event.resolved, event.measured) == ("torch.randn_like", None, None)


def test_measuring_counts_only_what_was_not_zero_before():
    (event,) = events(lambda m, x: F.dropout(F.pad(x, (0, 800)), 0.5, m.training))
    assert 0.4 < event.measured < 0.6


def test_a_module_that_is_called_through_functional_call_is_named():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3))

        def forward(self, x):
            return torch.func.functional_call(self.inner, dict(self.inner.named_parameters()), (x,))

    (event,) = td.audit(Outer(), X).events
    assert (event.path, event.source) == ("inner.1", "inner.1.p")


@pytest.mark.parametrize("inputs", [X, (X,), [X], {"x": X}])
def test_inputs_are_a_tensor_a_sequence_or_keywords(inputs):
    assert len(events(lambda m, x: F.dropout(x, 0.3, m.training), inputs)) == 1


def test_learned_dropout_is_seen_in_both_modes():
    model = Decoder(16, DecoderConfig(width=8, heads=2, blocks=2, context=8))
    rule = td.Rule("mlp_output", td.LearnedDropout, heads=2, shift=1.5708, weight=0.1)
    handle = td.regularize_(model, td.Recipe([rule, td.Rule("attention_weights", td.Dropout, p=0.2)]))
    tokens = torch.arange(16).reshape(2, 8)
    audit = td.audit(model, (tokens,), regularization=handle)
    learned = [event for event in audit.events if event.kind == "mlp_output"]
    assert [(e.training, e.random) for e in learned] == [(True, True)] * 2 + [(False, False)] * 2
    assert all(0 < event.measured < 1 for event in learned)
    assert [e.resolved for e in audit.events if e.kind == "attention_weights"] == [0.2, 0.2]
    assert audit.findings == ()
    with pytest.raises(td.InputError, match="before a forward"):
        # The forwards of the audit left no penalty behind.
        handle.penalty()


class Everything(nn.Module):
    """Changes whatever a forward can change."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(6), nn.Dropout(0.3))
        self.frozen = nn.Dropout(0.3).eval()
        self.count = 0

    def forward(self, x):
        self.count += 1
        self.last = self.frozen(self.body(x))
        return self.last


def test_an_audit_leaves_no_trace():
    model = Everything()
    model.body(X).sum().backward()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    gradients = [parameter.grad for parameter in model.parameters()]
    values = [gradient.clone() for gradient in gradients]
    audit = td.audit(model, X)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(g, v) for g, v in zip(gradients, values, strict=True))
    assert (model.training, model.frozen.training, model.count) == (True, False, 0)
    assert not hasattr(model, "last")
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    # What the user put in evaluation stays there in a model that is in training.
    assert [event.path for event in audit.events] == ["body.2"]


def test_a_model_in_evaluation_is_put_back():
    model = Everything().eval()
    assert [event.path for event in td.audit(model, X).events] == ["body.2", "frozen"]
    assert not any(module.training for module in model.modules())


def test_a_forward_that_fails_leaves_no_trace():
    model = Function(lambda m, x: F.dropout(x, 2.0))
    with pytest.raises(ValueError, match="dropout probability"):
        td.audit(model, X)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert torch.equal(nn.Dropout(0.5).eval()(X), X)


def test_json_and_table_say_the_same():
    audit = td.audit(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3)), X)
    (event,) = json.loads(audit.to_json())["events"]
    assert (event["path"], event["configured"], event["resolved"]) == ("1", 0.3, 0.3)
    columns, (row,) = audit.table()
    assert dict(zip(columns, row, strict=True)) == {
        "site": "1",
        "kind": "unknown",
        "operation": "F.dropout",
        "configured": "0.3",
        "resolved": "0.3",
        "measured": f"{event['measured']:.4g}",
        "training": "1",
        "eval": "0",
    }


def test_raise_if_counts_the_codes_that_it_is_given():
    audit = td.audit(Function(lambda m, x: F.dropout(x, 0.3)), X)
    audit.raise_if("dead-field")
    with pytest.raises(td.InputError, match="active-in-eval"):
        audit.raise_if("active-in-eval")
    with pytest.raises(td.InputError, match="1 finding:"):
        audit.raise_if()


def test_assert_clean_fails_with_the_findings():
    model = Function(lambda m, x: F.dropout(x, 0.3))
    with pytest.raises(AssertionError, match="active-in-eval"):
        assert_clean(model, X)
    assert_clean(model, X, ignore=("active-in-eval",))


def test_what_cannot_be_seen_is_refused():
    with pytest.raises(td.InputError, match=r"is compiled.*_orig_mod"):
        td.audit(torch.compile(nn.Linear(8, 8), backend="eager"), X)
    with pytest.raises(td.InputError, match="run one forward"):
        td.audit(nn.LazyLinear(8), X)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("text", "inputs is a str; give a dict"),
        (None, "inputs is None; give a dict"),
        ([X, X], r"takes \(x\), .* called with a list of tensor\(4, 6, 8\), tensor.*must be Tensor"),
        ({"y": X}, r"takes \(x\), and cannot be called with a dict of y"),
        (X.numpy(), r"takes \(x\), and cannot be called with a ndarray"),
    ],
)
def test_inputs_that_a_model_does_not_take_are_one_sentence(inputs, message):
    with pytest.raises(td.InputError, match=message) as error:
        td.audit(Function(lambda m, x: F.dropout(x, 0.3, m.training)), inputs)
    assert "\n" not in str(error.value)
    with td.mc_dropout(Function(lambda m, x: x), 2) as predict, pytest.raises(td.InputError, match=message):
        predict(inputs)


class Batched(nn.Module):
    """Takes its whole batch as one argument."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3))

    def forward(self, batch):
        return self.layers(batch["x"] if isinstance(batch, dict) else batch.x)


def test_one_argument_that_holds_everything_is_passed_whole():
    for batch in ({"x": X}, SimpleNamespace(x=X)):
        assert len(td.audit(Batched(), batch).events) == 1
        with td.mc_dropout(Batched(), 4) as predict:
            assert (predict(batch).variance > 0).any()
        with td.disabled(Batched(), batch):
            pass


@pytest.mark.parametrize("large", [1, 10**6])
@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside transformers
def test_few_gradients_lead_through_all_that_is_checkpointed(family, large, monkeypatch):
    monkeypatch.setattr(_observe, "LARGE", large)
    model = tiny_model(family, **({"attention_dropout": 0.2} if family == "llama" else {}))
    model.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    findings = td.audit(model.train(), tiny_inputs(model)).findings
    found = [finding.site for finding in findings if finding.code == "recompute-mask-differs"]
    monkeypatch.setattr(_observe, "enough_parameters", lambda model, blocks: list(model.parameters()))
    findings = td.audit(model, tiny_inputs(model)).findings
    assert found == [finding.site for finding in findings if finding.code == "recompute-mask-differs"] != []


def test_the_gradients_of_a_large_model_take_little_memory():
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    asked = _observe.enough_parameters(model, block_paths(model))
    whole = sum(parameter.numel() for parameter in model.parameters())
    assert whole > 124e6
    assert sum(parameter.numel() for parameter in asked) < 0.01 * whole
    # One in each block at least, the first among them.
    names = [name for name, parameter in model.named_parameters() if any(parameter is p for p in asked)]
    assert {name.split(".")[2] for name in names if ".h." in name} == {str(block) for block in range(12)}


def test_a_model_that_fails_on_its_inputs_says_so_in_one_sentence():
    def forward(x):
        raise NotImplementedError("This attention has no backward here.\nTry another device.")

    model = nn.Linear(2, 2)
    model.forward = forward
    with pytest.raises(
        td.InputError, match=r"Linear could not be run with a tensor of shape \(3, 2\): This atten"
    ):
        td.audit(model, torch.ones(3, 2))
