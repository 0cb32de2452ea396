"""Models that the audit was not made for, each told truly."""

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import transformer_dropout as td
from transformer_dropout.audit.tiny_models import tiny_inputs, tiny_model

X = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.arange(24).reshape(4, 6) % 16


def seen(model, inputs=X):
    """Return what ran as (path, kind, operation, training), and the codes of the findings."""
    audit = td.audit(model, inputs)
    events = [(e.path, e.kind, e.operation, e.training) for e in audit.events]
    return events, [(finding.code, finding.site) for finding in audit.findings]


class Encoder(nn.Module):
    def __init__(self, p=0.2):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=p, batch_first=True)
        self.table, self.encoder, self.head = (
            nn.Embedding(16, 8),
            nn.TransformerEncoder(layer, 2),
            nn.Linear(8, 3),
        )

    def forward(self, ids, mask=None):
        return self.head(self.encoder(self.table(ids)))


class Passes(nn.Module):
    """A wrapper that passes on whatever it gets."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


class Unpacks(nn.Module):
    """A wrapper that takes its whole batch as one argument, and returns a dict."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, batch):
        return {"logits": self.inner(**batch)}


def test_wrappers_in_wrappers():
    model = Unpacks(Passes(Passes(Encoder())))
    events, found = seen(model, {"ids": TOKENS})
    assert [kind for _, kind, _, _ in events] == [
        "attention_weights",
        "attention_output",
        "mlp_hidden",
        "mlp_output",
    ] * 2
    assert events[0][0] == "inner.inner.inner.encoder.layers.0.self_attn"
    assert found == []
    model.inner.inner.eval()
    assert seen(model, {"ids": TOKENS}) == ([], [("eval-while-training", "inner.inner")])


def test_one_dropout_at_several_places_of_one_block_that_runs_again():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.drop = nn.Embedding(16, 8), nn.Dropout(0.25)
            self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
            self.block.dropout1 = self.block.dropout2 = self.drop

        def forward(self, ids):
            x = self.drop(self.table(ids))
            return self.block(self.block(x))

    events, found = seen(Shared(), TOKENS)
    assert [kind for _, kind, _, _ in events] == ["embedding", *["attention_output", "mlp_output"] * 2]
    assert {path for path, _, _, _ in events} == {"drop"}
    assert found == []


def test_noise_of_numpy_in_a_part_is_named_there():
    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.from_numpy(np.random.randn(*x.shape)).float() if self.training else x

    assert seen(nn.Sequential(nn.Linear(8, 8), Noise())) == ([("1", "unknown", "numpy.random", True)], [])


def test_layer_drop_by_two_generators():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.layerdrop = nn.ModuleList(nn.Linear(8, 8) for _ in range(2)), 0.3

        def forward(self, x):
            for layer in self.layers:
                if self.training and (random.random() < 0 or torch.rand([]) < self.layerdrop):
                    continue
                x = layer(x)
            return x

    events, _ = seen(Skips())
    assert ("", "block", "torch.rand", True) in events
    assert ("", "unknown", "random", True) in events


def test_experts_that_are_added_in_place_behind_a_noisy_router():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.router, self.drop = nn.Linear(8, 24), nn.Linear(8, 2), nn.Dropout(0.2)
            self.experts = nn.ModuleList(
                nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(2)
            )

        def forward(self, x):
            x = x + F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1))
            rows = x.reshape(-1, 8)
            scores = self.router(rows)
            weights = F.gumbel_softmax(scores) if self.training else scores.softmax(-1)
            out = torch.zeros_like(rows)
            for number, expert in enumerate(self.experts):
                mine = torch.arange(len(rows))[number::2]
                out.index_add_(0, mine, expert(rows[mine]) * weights[mine, number : number + 1])
            return x + self.drop(out.view_as(x))

    events, found = seen(Experts())
    assert events == [("", "unknown", "F.gumbel_softmax", True), ("drop", "mlp_output", "F.dropout", True)]
    assert found == []
    (router, _) = td.audit(Experts(), X).events
    # The rate that the module holds is that of its dropout, which ran by itself.
    assert router.configured is None


def test_what_draws_in_evaluation_on_purpose_is_no_dropout():
    class Samples(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean, self.spread = nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, x):
            return self.mean(x) + torch.randn(4, 6, 4) * self.spread(x).exp()

    assert seen(Samples())[1] == [("random-in-eval", "")]


def test_a_generator_of_torch_of_its_own_is_seen():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.generator = nn.Linear(8, 8), torch.Generator().manual_seed(0)

        def forward(self, x):
            return self.linear(x) * (torch.rand(x.shape, generator=self.generator) > 0.3)

    assert seen(Own())[1] == [("active-in-eval", "")]


def test_dropouts_in_a_plain_list_are_out_of_reach_of_eval():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.drops = nn.Linear(8, 8), [nn.Dropout(0.3), nn.Dropout(0.2)]

        def forward(self, x):
            x = self.linear(x)
            for drop in self.drops:
                x = F.relu(drop(x))
            return x

    events, found = seen(Listed())
    assert [training for _, _, _, training in events] == [True, True, False, False]
    assert found == [("active-in-eval", "")] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_attention_of_einsum_in_any_dtype(dtype):
    class Einsum(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out, self.rate = nn.Linear(8, 24), nn.Linear(8, 8), 0.3

        def forward(self, x):
            q, k, v = (part.unflatten(-1, (2, 4)) for part in self.qkv(x).split(8, -1))
            weights = torch.einsum("bihd,bjhd->bhij", q, k).softmax(-1)
            weights = F.dropout(weights, self.rate, self.training)
            return x + self.out(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(-2))

    assert seen(Einsum().to(dtype), X.to(dtype))[0] == [("", "attention_weights", "F.dropout", True)]
    # Without numbers, and without rows.
    assert seen(Einsum().to("meta"), X.to("meta"))[0] == [("", "attention_weights", "F.dropout", True)]
    assert seen(Einsum(), X[:0])[0] == []


def test_weights_that_are_dropped_are_no_place_of_a_stream():
    class Connections(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            return F.linear(x, F.dropout(self.linear.weight, 0.3, self.training), self.linear.bias)

    assert seen(Connections())[0] == [("", "unknown", "F.dropout", True)]
    linear = nn.Linear(8, 8)
    nn.utils.parametrize.register_parametrization(linear, "weight", nn.Dropout(0.2))
    assert seen(nn.Sequential(linear, nn.ReLU()))[0] == [
        ("0.parametrizations.weight.0", "unknown", "F.dropout", True)
    ]


def test_a_mask_inside_an_autograd_function_is_seen_and_measured():
    class Masked(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            mask = torch.rand_like(x) > 0.3
            ctx.save_for_backward(mask)
            return x * mask

        @staticmethod
        def backward(ctx, gradient):
            return gradient * ctx.saved_tensors[0]

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            return F.relu(Masked.apply(self.linear(x)) if self.training else self.linear(x))

    (event,) = td.audit(Model(), X).events
    assert (event.operation, event.resolved) == ("torch.rand_like", None)
    assert abs(event.measured - 0.3) < 0.12


def test_a_dropout_inside_vmap_is_seen_without_a_measurement_that_fails():
    class Mapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            return torch.vmap(
                lambda row: F.dropout(self.linear(row), 0.2, self.training), randomness="different"
            )(x)

    (event,) = td.audit(Mapped(), X).events
    assert event.resolved == 0.2


def test_a_part_that_is_compiled_is_refused_and_a_compiled_function_is_seen():
    class Compiled(nn.Module):
        def __init__(self, part):
            super().__init__()
            self.linear, self.part = nn.Linear(8, 8), part

        def forward(self, x):
            return self.part(self.linear(x))

    part = torch.compile(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2)), backend="eager")
    with pytest.raises(td.InputError, match="part is compiled"):
        td.audit(Compiled(part), X)
    function = torch.compile(lambda x: F.dropout(x, 0.2), backend="eager")
    assert seen(Compiled(function))[1] == [("active-in-eval", "")]


def test_convolutions_with_batch_norms_between_dropouts():
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.2)),
        *(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Dropout(0.5), nn.Linear(8 * 16, 10)),
    )
    state = copy.deepcopy(model.state_dict())
    events, found = seen(model, torch.randn(2, 3, 8, 8))
    assert [(path, operation) for path, _, operation, _ in events] == [
        ("3", "F.dropout2d"),
        ("7", "F.dropout"),
    ]
    assert found == [("dropout-before-batch-norm", "3")]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_state_that_forwards_leave_behind_varies_evaluations():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.seen = nn.Linear(8, 8), []

        def forward(self, x):
            self.seen.append(1)
            return self.linear(x) * len(self.seen)

    assert seen(Counts())[1] == [("varies-in-eval", "")]


def test_a_part_that_wakes_its_dropout_itself_is_found():
    class Wakes(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.drop = nn.Linear(8, 8), nn.Dropout(0.2)

        def forward(self, x):
            self.drop.train()
            return F.relu(self.drop(self.linear(x)))

    model = Wakes().eval()
    assert seen(model)[1] == [("active-in-eval", "drop")]
    assert not model.drop.training


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_adapters_are_named_and_the_noise_around_them_is_theirs():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, lora_dropout=0.2, target_modules=["query"], modules_to_save=["classifier"])
    model = peft.get_peft_model(tiny_model("bert"), config).train()
    inputs = tiny_inputs(model)
    events, found = seen(model, inputs)
    assert [kind for path, kind, _, _ in events if "lora_dropout" in path] == ["lora"] * 2
    # The embedding is frozen as a whole; in the blocks adapters train.
    assert found == [("frozen-but-drops", "base_model.model.bert.embeddings")]
    td.set_rates(model, {"mlp_output": 0.3, "embedding": 0.3})
    assert seen(model, inputs)[1] == []


def test_attention_and_mlp_that_are_dropped_together_are_what_the_block_adds():
    class Parallel(nn.Module):
        def __init__(self, act):
            super().__init__()
            self.norm, self.drop = nn.LayerNorm(8), nn.Dropout(0.2)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.mlp = nn.Sequential(nn.Linear(8, 16), act, nn.Linear(16, 8))

        def forward(self, x, together=True):
            y = self.norm(x)
            mixed, made = self.attention(y, y, y)[0], self.mlp(y)
            return x + self.drop(mixed + made) if together else x + self.drop(mixed) + self.drop(made)

    class Apart(Parallel):
        def forward(self, x):
            return super().forward(x, together=False)

    def kinds(kind, act):
        model = nn.Sequential(nn.Linear(8, 8), kind(act), kind(act))
        return [kind for _, kind, _, _ in seen(model)[0]]

    assert kinds(Parallel, nn.GELU()) == ["block"] * 2
    assert kinds(Apart, nn.GELU()) == ["attention_output", "mlp_output"] * 2
    # Without an activation the first MLP cannot be told from what is before the blocks.
    assert kinds(Apart, nn.Identity())[2:] == ["attention_output", "mlp_output"]


class Given(nn.Module):
    """Puts what it computes into the batch, as wrappers of sentence encoders do."""

    def __init__(self):
        super().__init__()
        self.encoder = Encoder()

    def forward(self, features):
        assert "out" not in features
        features["out"] = self.encoder(features["ids"])
        return features


def test_a_batch_that_the_model_writes_to_is_given_back_as_it_was():
    batch = {"ids": TOKENS}
    assert len(seen(Given(), batch)[0]) == 8
    assert list(batch) == ["ids"]


def test_learned_queries_are_an_embedding():
    class Queries(nn.Module):
        def __init__(self):
            super().__init__()
            self.queries, self.drop = nn.Embedding(5, 8), nn.Dropout(0.2)
            self.decoder = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.1, batch_first=True)

        def forward(self, memory):
            queries = self.queries.weight.unsqueeze(0).repeat(len(memory), 1, 1)
            return self.decoder(self.drop(queries), memory)

    kinds = [kind for _, kind, _, _ in seen(Queries())[0]]
    attention = ["attention_weights", "attention_output"]
    assert kinds == ["embedding", *attention, *attention, "mlp_hidden", "mlp_output"]


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_quantised_recurrence_is_seen_to_drop():
    model = nn.Sequential(nn.LSTM(8, 8, num_layers=2, dropout=0.5, batch_first=True))
    model = torch.ao.quantization.quantize_dynamic(model.eval(), {nn.LSTM}, dtype=torch.qint8)
    (event,) = td.audit(model, X).events
    assert (event.path, event.kind, event.resolved, event.training) == ("0", "mlp_hidden", 0.5, True)
