"""Dropout off in training, and on in evaluation: exactly, for every family, and back again."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as attend
from torch.utils.checkpoint import checkpoint

import transformer_dropout as td
from transformer_dropout.audit._configured import config_fields
from transformer_dropout.audit.tiny_models import FAMILIES, tiny_inputs, tiny_model
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig

X = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))


def configured(family):
    return tiny_model(family, **dict.fromkeys(config_fields(tiny_model(family)), 0.37))


@pytest.mark.parametrize("family", FAMILIES)
def test_disabled_is_exact_and_mc_dropout_varies_in_every_family(family):
    model = configured(family)
    inputs = tiny_inputs(model)
    # Layer drop may skip every block of two forwards in a row.
    torch.manual_seed(0)
    with torch.no_grad():
        plain = model(**inputs).logits
        model.train()
        with td.disabled(model, inputs):
            off = [model(**inputs).logits for _ in range(2)]
        on = [model(**inputs).logits for _ in range(2)]
    assert torch.equal(off[0], off[1])
    assert torch.equal(off[0], plain)
    assert not torch.equal(on[0], on[1])
    model.eval()
    with td.mc_dropout(model, 4) as predict:
        result = predict(**inputs)
    assert (result.variance > 0).float().mean() > 0.8
    assert result.mutual_information.max() > 0
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, plain)


class Function(nn.Module):
    def __init__(self, function, **attributes):
        super().__init__()
        self.function, self.linear = function, nn.Linear(8, 8)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.function(self, self.linear(x))


KINDS = {
    "functional": lambda: Function(lambda m, x: F.dropout(x, 0.5, m.training)),
    "forgets training": lambda: Function(lambda m, x: F.dropout(x, 0.5)),
    "in place": lambda: Function(lambda m, x: F.dropout(x, 0.5, m.training, inplace=True)),
    "torch": lambda: Function(lambda m, x: torch.dropout(x, 0.5, m.training)),
    "native": lambda: Function(lambda m, x: torch.native_dropout(x, 0.5, m.training)[0]),
    "alpha": lambda: Function(lambda m, x: F.alpha_dropout(x, 0.5, m.training)),
    "channels": lambda: Function(lambda m, x: F.dropout1d(x, 0.5, m.training)),
    "attention": lambda: Function(lambda m, x: attend(x, x, x, None, 0.5)),
    "attention by name": lambda: Function(
        lambda m, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)
    ),
    "module": lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)),
    "alpha module": lambda: nn.Sequential(nn.Linear(8, 8), nn.AlphaDropout(0.5)),
    "channels module": lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout1d(0.5)),
    "transformer": lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True),
    "recurrent": lambda: nn.LSTM(8, 8, num_layers=2, dropout=0.5, batch_first=True),
    "rrelu": lambda: Function(lambda m, x: F.rrelu(x, training=m.training)),
    "ours": lambda: nn.Sequential(nn.Linear(8, 8), td.Dropout(0.5), td.DropPath(0.5), td.GaussianNoise(0.5)),
    "learned": lambda: nn.Sequential(nn.Linear(8, 8), td.LearnedDropout(8, 2, shift=1.5, eval_mask="sample")),
}


def first(output):
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("kind", KINDS)
def test_disabled_turns_off_every_kind(kind):
    model = KINDS[kind]().train()
    assert not torch.equal(first(model(X)), first(model(X)))
    with td.disabled(model, X):
        assert torch.equal(first(model(X)), first(model(X)))
        # Whatever mode the model is put in meanwhile.
        model.eval()
        model.train()
        assert torch.equal(first(model(X)), first(model(X)))
    assert not torch.equal(first(model(X)), first(model(X)))


@pytest.mark.parametrize(
    "kind", sorted(set(KINDS) - {"attention", "attention by name", "forgets training", "learned"})
)
def test_disabled_gives_what_evaluation_gives(kind):
    model = KINDS[kind]()
    with td.disabled(model), torch.no_grad():
        off = first(model(X))
    torch.testing.assert_close(off, first(model.eval()(X)))


def test_disabled_leaves_batch_norms_in_training():
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5)).train()
    with td.disabled(model):
        model(X)
    assert model[0].num_batches_tracked == 1
    with td.disabled(model, X):
        pass
    # The proof runs forwards of its own, which leave no trace.
    assert model[0].num_batches_tracked == 1


def test_disabled_touches_nothing_outside_the_model():
    model, other = nn.Sequential(nn.Dropout(0.5)), nn.Dropout(0.5)
    with td.disabled(model):
        assert (other(X) == 0).any()
        assert (F.dropout(X) == 0).any()
        assert torch.equal(model(X), X)


def test_disabled_puts_everything_back():
    model = nn.Sequential(
        nn.TransformerEncoderLayer(8, 2, dropout=0.3), td.LearnedDropout(8, 2, eval_mask="sample")
    )
    model[0].dropout1.eval()
    before = [{k: v for k, v in vars(m).items() if not k.startswith("_")} for m in model.modules()]
    with pytest.raises(RuntimeError, match="inside"), td.disabled(model, X):
        model(X)
        raise RuntimeError("inside")
    after = [{k: v for k, v in vars(m).items() if not k.startswith("_")} for m in model.modules()]
    for one, other in zip(before, after, strict=True):
        assert one.keys() == other.keys()
        assert all(one[name] is other[name] for name in one if name != "pending_penalty")
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_disabled_reaches_what_checkpointing_recomputes():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Tanh())

        def forward(self, x):
            return checkpoint(self.body, x, use_reentrant=False)

    model = Checkpointed()
    with td.disabled(model):
        gradients = [torch.autograd.grad(model(X).sum(), model.body[0].weight)[0] for _ in range(2)]
        model(X).sum().backward()
    plain = torch.autograd.grad(model.body.eval()(X).sum(), model.body[0].weight)[0]
    for gradient in (*gradients, model.body[0].weight.grad):
        assert torch.equal(gradient, plain)


def test_randomness_that_is_no_dropout_is_named():
    model = nn.Sequential(Function(lambda m, x: x * (torch.rand_like(x) > 0.5)))
    with pytest.raises(td.InputError, match="cannot turn off rand_like in 0"), td.disabled(model, X):
        pass


def test_a_proof_that_fails_says_so():
    class Counter(nn.Module):
        calls = 0

        def forward(self, x):
            Counter.calls += 1
            return x + Counter.calls

    with (
        pytest.raises(td.InputError, match="Two forwards in training mode differ"),
        td.disabled(Counter(), X),
    ):
        pass


def test_a_compiled_model_is_refused():
    model = nn.Sequential(nn.Linear(8, 8))
    model[0].compile(backend="eager")
    with pytest.raises(td.InputError, match="0 is compiled"), td.disabled(model):
        pass
    with pytest.raises(td.InputError, match="0 is compiled"), td.mc_dropout(model, 2):
        pass


def test_mean_and_variance_are_those_of_the_forwards():
    model = nn.Sequential(nn.Linear(8, 3), nn.Dropout(0.5)).eval()
    torch.manual_seed(1)
    with td.mc_dropout(model, 5) as predict:
        result = predict(X)
    torch.manual_seed(1)
    outputs = torch.stack([model.train()(X) for _ in range(5)])
    torch.testing.assert_close(result.mean, outputs.mean(0))
    torch.testing.assert_close(result.variance, outputs.var(0))
    torch.testing.assert_close(result.probabilities, outputs.softmax(-1).mean(0))
    assert not result.mean.requires_grad


def test_entropy_splits_into_noise_and_mutual_information():
    class Flip(nn.Module):
        """Certain of a class in each forward, but of one of two classes in turn."""

        def __init__(self, logits):
            super().__init__()
            self.logits, self.number = logits, 0

        def forward(self, x):
            self.number += 1
            return self.logits[self.number % 2][None]

    certain = torch.tensor([[50.0, -50.0], [-50.0, 50.0]])
    with td.mc_dropout(Flip(certain), 4) as predict:
        result = predict(X)
    torch.testing.assert_close(result.entropy, torch.tensor([math.log(2)]))
    torch.testing.assert_close(result.mutual_information, torch.tensor([math.log(2)]))
    with td.mc_dropout(Flip(torch.zeros(2, 2)), 4) as predict:
        result = predict(X)
    torch.testing.assert_close(result.entropy, torch.tensor([math.log(2)]))
    torch.testing.assert_close(result.mutual_information, torch.tensor([0.0]))


def test_a_model_without_dropout_does_not_vary():
    with td.mc_dropout(nn.Linear(8, 3), 3) as predict:
        assert not predict(X).variance.any()


def test_mc_dropout_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5), td.LearnedDropout(8, 2)).eval()
    model[1].train()
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    with td.mc_dropout(model, 2) as predict:
        assert not model[0].training
        predict(X)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert model[2].pending_penalty is None
    with pytest.raises(td.InputError, match="has ended"):
        predict(X)


def test_our_decoder_varies_and_is_called_like_the_model():
    model = Decoder(16, DecoderConfig(width=8, heads=2, blocks=2, context=8)).eval()
    td.regularize_(model, td.Recipe([td.Rule("attention_weights", td.Dropout, p=0.3)]))
    tokens = torch.arange(16).reshape(2, 8)
    with td.mc_dropout(model, 8) as predict:
        assert predict(tokens).variance.max() > 0
        assert predict(tokens=tokens).mean.shape == predict((tokens,)).mean.shape == (2, 8, 16)


@pytest.mark.parametrize("n", [1, 0, 2.5])
def test_a_variance_takes_two_forwards(n):
    with pytest.raises(td.InputError, match="at least 2"), td.mc_dropout(nn.Linear(8, 3), n):
        pass


def test_an_output_without_numbers_is_refused():
    model = Function(lambda m, x: {"ids": x.long()})
    with td.mc_dropout(model, 2) as predict, pytest.raises(td.InputError, match="without a tensor"):
        predict(X)


class Raising(nn.Module):
    """A dropout around a module that fails at a certain call."""

    def __init__(self, at):
        super().__init__()
        self.drop, self.at, self.calls = nn.Dropout(0.5), at, []
        self.drop.register_forward_hook(self.count)

    def count(self, module, arguments, output):
        self.calls.append(output)
        if len(self.calls) == self.at:
            raise RuntimeError("inside the dropout")

    def forward(self, x):
        return self.drop(x)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_dropout_that_fails_inside_leaves_the_model_as_it_was(at):
    model = Raising(at)
    # Two forwards prove that everything is off, the third is the user's.
    with pytest.raises(RuntimeError, match="inside the dropout"), td.disabled(model, X):
        model(X)
    assert model.drop.training and model.training
    assert len(model.drop._forward_hooks) == 1 and not model.drop._forward_pre_hooks
    assert (model(X) == 0).any()


def test_the_proof_leaves_a_part_in_evaluation_there():
    modes = []
    model = nn.Sequential(nn.Linear(8, 8), Function(lambda m, x: modes.append(m.training) or x))
    model.train()[1].eval()
    with td.disabled(model, X):
        model(X)
    assert modes == [False] * 3 and not model[1].training and model.training
