"""Each finding: the smallest model that has it, and a near twin that does not."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import transformer_dropout as td

X = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))


def findings(model, inputs=X, **options):
    return td.audit(model, inputs, **options).findings


def codes(model, inputs=X, **options):
    return [finding.code for finding in findings(model, inputs, **options)]


class Attention(nn.Module):
    """Attention that holds a rate, and does with it what a function says."""

    def __init__(self, rate_of=None, p=0.3):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.attention_dropout = p
        self.rate_of = rate_of or (lambda module: module.attention_dropout if module.training else 0.0)

    def forward(self, x):
        x = self.linear(x)
        return F.scaled_dot_product_attention(x, x, x, dropout_p=self.rate_of(self))


class Function(nn.Module):
    """A linear layer and a function of its output."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return self.function(self, self.linear(x))


class Configured(nn.Module):
    """A model with a config, whose one dropout has a rate of its own."""

    def __init__(self, p, **config):
        super().__init__()
        self.config = type("Config", (), {})()
        vars(self.config).update(config)
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.Dropout(p))

    def forward(self, x):
        return self.layers(x)


def test_a_function_that_forgets_training_is_active_in_eval():
    (finding,) = findings(Function(lambda m, x: F.dropout(x, 0.3)))
    assert finding.code == "active-in-eval"
    assert "training=self.training" in finding.message
    assert codes(Function(lambda m, x: F.dropout(x, 0.3, training=m.training))) == []


def test_attention_that_forgets_training_is_active_in_eval():
    model = nn.ModuleDict({"attn": Attention(lambda module: module.attention_dropout)})["attn"]
    (finding,) = findings(model)
    assert finding.code == "active-in-eval"
    assert "dropout_p=p if self.training else 0.0" in finding.message
    assert codes(Attention()) == []


def test_blocks_share_one_finding():
    model = nn.Sequential(*(Attention(lambda module: 0.3) for _ in range(3)))
    assert [(f.code, f.site) for f in findings(model)] == [("active-in-eval", "*")]


def test_blocks_of_other_rates_are_told_apart_or_as_a_span():
    forgetful = nn.Sequential(*(Function(lambda m, x, p=p: F.dropout(x, p)) for p in (0.1, 0.1, 0.2)))
    told = [(f.code, f.site, f.message.split()[6]) for f in findings(forgetful)]
    assert told == [("active-in-eval", "*", "0.1"), ("active-in-eval", "2", "0.2")]
    parts = (nn.Sequential(nn.Linear(8, 8), nn.Dropout(p), nn.Dropout(p)) for p in (0.1, 0.3, 0.2))
    (finding,) = findings(nn.Sequential(*parts))
    assert (finding.code, finding.site) == ("dropout-twice", "*.2")
    assert "It drops with 0.1 to 0.3 what the dropout of *.1 has left" in finding.message
    assert "0.19 to 0.51 together" in finding.message


def test_noise_in_evaluation_is_random_in_eval():
    assert codes(Function(lambda m, x: x + torch.randn_like(x))) == ["random-in-eval"]
    assert codes(Function(lambda m, x: x + torch.randn_like(x) if m.training else x)) == []


def test_a_field_with_a_rate_that_nothing_ran_with_is_dead():
    (finding,) = findings(Configured(0.2, hidden_dropout=0.2, classifier_dropout=0.3))
    assert (finding.code, finding.site) == ("dead-field", "config.classifier_dropout")
    assert codes(Configured(0.2, hidden_dropout=0.2, classifier_dropout=0.0)) == []
    # Equal to a rate that ran: whether it was read cannot be told, and is not claimed.
    assert codes(Configured(0.2, hidden_dropout=0.2, classifier_dropout=0.2)) == []


def test_a_rebuild_tells_fields_of_one_value_apart():
    def rebuild(fields):
        return Configured(fields["hidden_dropout"], **fields)

    model = Configured(0.2, hidden_dropout=0.2, classifier_dropout=0.2)
    assert codes(model, rebuild=rebuild) == ["dead-field"]
    assert codes(Configured(0.2, hidden_dropout=0.2), rebuild=rebuild) == []


class Uncalled(nn.Module):
    """Holds a dropout that it may call, or whose rate it may read."""

    def __init__(self, use, p=0.3):
        super().__init__()
        self.linear, self.dropout, self.use = nn.Linear(8, 8), nn.Dropout(p), use

    def forward(self, x):
        return self.use(self, self.linear(x))


def attend_with_rate_of_child(module, x):
    return F.scaled_dot_product_attention(x, x, x, dropout_p=module.dropout.p if module.training else 0.0)


def attend_with_equal_rate(module, x):
    return F.scaled_dot_product_attention(x, x, x, dropout_p=0.3 if module.training else 0.0)


def test_a_module_that_is_never_called_is_found():
    (finding,) = findings(Uncalled(lambda m, x: x))
    assert (finding.code, finding.site) == ("never-called", "dropout")
    assert codes(Uncalled(lambda m, x: m.dropout(x))) == []
    assert codes(Uncalled(lambda m, x: x, p=0.0)) == []


def test_a_module_whose_rate_is_read_is_told_from_one_that_has_the_same_rate():
    audit = td.audit(Uncalled(attend_with_rate_of_child), X)
    assert audit.findings == ()
    assert "its p is read by the model" in audit.notes[0]
    # An equal rate beside it is no evidence: when its p moves, nothing follows.
    assert codes(Uncalled(attend_with_equal_rate)) == ["never-called"]


def test_a_part_that_did_not_run_says_nothing_about_its_dropout():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3))

        def forward(self, x):
            return self.used(x)

    assert codes(Branch()) == []


def test_attention_that_ignores_its_rate_is_found():
    (finding,) = findings(Attention(lambda module: 0.0))
    assert finding.code == "kernel-drops-attention-dropout"
    assert "attention_dropout = 0.3" in finding.message
    assert codes(Attention()) == []
    assert codes(Attention(lambda module: 0.0, p=0.0)) == []


def test_a_field_that_a_kernel_ignores_is_not_called_dead():
    model = Attention(lambda module: 0.0)
    model.config = type("Config", (), {})()
    model.config.attention_dropout = 0.3
    assert codes(model) == ["kernel-drops-attention-dropout"]


def test_dropout_that_reaches_a_batch_norm_is_found():
    before = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(8, 8))
    (finding,) = findings(before)
    assert (finding.code, finding.site) == ("dropout-before-batch-norm", "1")
    assert "batch norm 3" in finding.message
    after = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 8))
    assert codes(after) == []


class NormCalledTwice(nn.Module):
    """One batch norm for two branches, each with a dropout of its own or with none."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second, self.norm = first, second, nn.BatchNorm1d(6)

    def forward(self, x):
        return self.norm(self.first(x)) + self.norm(self.second(x))


def test_every_call_of_a_batch_norm_counts():
    def sites(*branches):
        return [f.site for f in findings(NormCalledTwice(*branches))]

    assert sites(nn.Dropout(0.3), nn.Dropout(0.2)) == ["first", "second"]
    assert sites(nn.Dropout(0.3), nn.Identity()) == ["first"]
    assert sites(nn.Identity(), nn.Dropout(0.3)) == ["second"]


def test_dropout_through_attention_reaches_a_batch_norm():
    assert codes(nn.Sequential(Attention(), nn.BatchNorm1d(6))) == ["dropout-before-batch-norm"]
    assert codes(nn.Sequential(nn.BatchNorm1d(6), Attention())) == []


def blocks():
    parts = [nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3), nn.ReLU()) for _ in range(3)]
    return nn.Sequential(*parts, nn.Linear(8, 2))


def test_a_frozen_part_that_drops_is_found():
    model = blocks()
    for block in model[:2]:
        block.requires_grad_(False)
    assert [(f.code, f.site) for f in findings(model)] == [("frozen-but-drops", "*")]
    model.train()
    for block in model[:2]:
        block.eval()
    assert codes(model) == []
    assert codes(blocks()) == []
    # A part that is trained in part, as with adapters, does not count.
    half = blocks()
    half[0][0].weight.requires_grad_(False)
    assert codes(half) == []


class Checkpointed(nn.Module):
    """Runs its body under activation checkpointing."""

    def __init__(self, **options):
        super().__init__()
        self.first, self.options = nn.Linear(8, 8), options
        self.body = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Tanh())

    def forward(self, x):
        x = self.first(x)
        return checkpoint(self.body, x, **self.options) if self.training else self.body(x)


def test_a_recomputation_with_another_mask_is_found():
    (finding,) = findings(Checkpointed(use_reentrant=False, preserve_rng_state=False))
    assert (finding.code, finding.site) == ("recompute-mask-differs", "body.1")
    assert codes(Checkpointed(use_reentrant=False)) == []


def test_a_recomputation_that_cannot_be_seen_is_said_so():
    audit = td.audit(Checkpointed(use_reentrant=True, preserve_rng_state=False), X)
    assert audit.findings == ()
    assert audit.notes[0].startswith("Recomputation was not observed")


class RunAgain(torch.autograd.Function):
    """A checkpoint as somebody writes it by hand."""

    @staticmethod
    def forward(ctx, x, body):
        ctx.body = body
        ctx.save_for_backward(x)
        with torch.no_grad():
            return body(x)

    @staticmethod
    def backward(ctx, gradient):
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            return torch.autograd.grad(ctx.body(x), x, gradient)[0], None


class CheckpointedByHand(Checkpointed):
    def forward(self, x):
        return RunAgain.apply(self.first(x), self.body)


def test_a_checkpoint_written_by_hand_is_seen():
    (finding,) = findings(CheckpointedByHand())
    assert (finding.code, finding.site) == ("recompute-mask-differs", "body.1")


class Backward(torch.autograd.Function):
    """Counts how often a backward pass goes through it."""

    passes = 0

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        Backward.passes += 1
        return gradient


class Counted(Checkpointed):
    def forward(self, x):
        return Backward.apply(super().forward(x))


@pytest.mark.parametrize("hooks", ["known", "unknown"])
def test_a_backward_pass_runs_where_it_may_run_something_random_again(hooks, monkeypatch):
    plain = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
    plain.register_forward_hook(lambda module, args, output: Backward.apply(output))
    monkeypatch.setattr(Backward, "passes", 0)
    if hooks == "unknown":
        monkeypatch.delattr(torch._C._autograd, "_top_saved_tensors_default_hooks")
    td.audit(plain, X)
    assert Backward.passes == (hooks == "unknown")
    if hooks == "known":
        td.audit(Counted(use_reentrant=False), X)
        assert Backward.passes == 1


class Force(nn.Module):
    """Returns the gradient of an energy, so that its forward holds a backward pass."""

    def __init__(self):
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 1))

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.energy(x).sum(), x, create_graph=self.training)[0]


class Tangent(Force):
    """The same by a transform of torch.func, which allows no hooks for what is saved."""

    def forward(self, x):
        return torch.func.grad(lambda y: self.energy(y).sum())(x)


@pytest.mark.parametrize("model", [Force, Tangent])
def test_a_forward_that_computes_gradients_is_watched_all_the_same(model):
    audit = td.audit(model(), X)
    assert audit.findings == ()
    assert [(event.path, event.resolved) for event in audit.events] == [("energy.2", 0.5)]


def test_weight_decay_on_norms_is_found():
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    found = findings(model, optimizer=optimizer)
    assert {(f.code, f.site) for f in found} == {
        ("weight-decay-on-norms", "1.weight"),
        ("weight-decay-on-norms", "1.bias"),
    }
    groups = [{"params": model[0].parameters()}, {"params": model[1].parameters(), "weight_decay": 0.0}]
    assert codes(model, optimizer=torch.optim.AdamW(groups, weight_decay=0.1)) == []


class Moving:
    """A schedule that writes a rate, into a module's attribute or into a buffer."""

    progress = 0.0

    def __init__(self, layer):
        self.layer = layer

    def set_progress(self, progress):
        self.progress = progress
        if isinstance(self.layer, nn.Dropout):
            self.layer.p = 0.5 * progress
        else:
            self.layer.set_rate(0.5 * progress)


@pytest.mark.parametrize(
    ("layer", "expected"), [(nn.Dropout, ["schedule-recompiles"]), (td.Dropout, [])], ids=["module", "ours"]
)
def test_a_schedule_that_recompiles_is_found(layer, expected):
    model = nn.Sequential(nn.Linear(8, 8), layer(0.2), nn.ReLU())
    schedule = Moving(model[1])
    assert codes(model, regularization=schedule) == expected
    assert schedule.progress == 0.0


def test_a_part_left_in_evaluation_is_named_with_the_line_to_type():
    model = blocks().train()
    model[1].eval()
    (finding,) = findings(model)
    assert (finding.code, finding.site) == ("eval-while-training", "1")
    assert finding.message.endswith('type: model.get_submodule("1").train()')
    model = Function(lambda m, x: m.part(x))
    model.part = blocks().eval()
    assert findings(model)[0].message.endswith("type: model.part.train()")
    assert codes(blocks().eval()) == codes(blocks().train()) == []
    # Nothing in it would drop; its parameters are frozen on purpose; a norm in evaluation is its own matter.
    still = nn.Sequential(
        nn.Linear(8, 8).eval(), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 2), nn.BatchNorm1d(6)
    )
    still[-1].eval()
    assert "eval-while-training" not in codes(still)


def test_waking_a_part_leaves_it_asleep():
    model = blocks().train()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    td.audit(model, X)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize(("draw", "name"), [(np.random.rand, "numpy.random"), (random.random, "random")])
def test_numbers_of_other_generators_in_evaluation_are_found(draw, name):
    states = random.getstate(), np.random.get_state()[1].copy()
    (finding,) = findings(Function(lambda m, x: x * draw()))
    assert finding.code == "random-in-eval"
    assert finding.message.startswith(f"{name} draws")
    audit = td.audit(Function(lambda m, x: x * draw() if m.training else x), X)
    assert [(e.operation, e.training) for e in audit.events] == [(name, True)]
    assert audit.findings == ()
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()


def test_outputs_that_vary_in_evaluation_for_no_reason_that_is_seen_are_found():
    own = np.random.default_rng(0)
    (finding,) = findings(Function(lambda m, x: x * own.random()))
    assert (finding.code, finding.site) == ("varies-in-eval", "")
    assert codes(Function(lambda m, x: x * own.random() if m.training else x)) == []


class Noise(nn.Module):
    """Holds a dropout that it never calls, beside noise whose rate may be the dropout's."""

    def __init__(self, reads):
        super().__init__()
        self.linear, self.dropout, self.reads = nn.Linear(8, 8), nn.Dropout(0.3), reads

    def forward(self, x):
        x = self.linear(x)
        rate = self.dropout.p if self.reads else 0.3
        return x * (torch.rand_like(x) > rate) / (1 - rate) if self.training else x


def test_setting_p_is_said_to_work_only_where_it_does():
    audit = td.audit(Noise(reads=True), X)
    assert audit.findings == ()
    assert audit.notes[0].endswith("its p is read by the model; setting p works.")
    audit = td.audit(Noise(reads=False), X)
    assert [finding.code for finding in audit.findings] == ["never-called"]
    assert audit.notes == ()


def test_a_rate_of_one_half_is_not_taken_for_none():
    audit = td.audit(Configured(0.5, hidden_dropout=0.5), X)
    assert [event.resolved for event in audit.events] == [0.5]
    assert audit.findings == ()
    assert audit.fields[0].read_at == ("layers.1",)


def test_dropout_straight_before_one_number_is_found():
    before = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3), nn.Linear(8, 1))
    (finding,) = findings(before)
    assert (finding.code, finding.site) == ("dropout-before-output", "1")
    assert codes(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 1))) == []
    assert codes(nn.Sequential(nn.Dropout(0.3), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))) == []


def test_a_classifier_keeps_the_dropout_of_its_head():
    assert codes(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3), nn.Linear(8, 2))) == []


def test_two_dropouts_in_a_row_are_found():
    twice = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3), nn.Flatten(1), nn.Dropout(0.1), nn.ReLU())
    (finding,) = findings(twice)
    assert (finding.code, finding.site) == ("dropout-twice", "3")
    assert "0.37 together" in finding.message
    assert codes(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3), nn.ReLU(), nn.Dropout(0.1), nn.Tanh())) == []
    assert codes(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3), nn.Dropout(0.0), nn.Tanh())) == []


def drop_path(x, p):
    return x * (torch.rand(len(x), 1, 1) >= p) / (1 - p)


class Branches(nn.Module):
    """Adds what a function makes of a branch and of a scale for each channel."""

    def __init__(self, function):
        super().__init__()
        self.function, self.linear = function, nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x):
        return x + self.function(self, self.linear(x)) if self.training else x


def test_a_branch_that_is_dropped_twice_is_found():
    (finding,) = findings(Branches(lambda m, x: drop_path(m.scale * drop_path(x, 0.5), 0.5)))
    assert finding.code == "drop-path-twice"
    # A dropout of elements and one of the whole branch belong together.
    assert codes(Branches(lambda m, x: drop_path(F.dropout(x, 0.2), 0.5))) == []


class Sums(nn.Module):
    """Two residual branches, linear or of convolutions, added by a function of `x` and `branch`."""

    def __init__(self, add, *, convolves=False):
        super().__init__()
        kind = (lambda: nn.Conv1d(8, 8, 1)) if convolves else (lambda: nn.Linear(8, 8))
        self.stem, self.add = nn.Conv1d(6, 8, 1) if convolves else nn.Linear(8, 8), add
        self.branches = nn.ModuleList(nn.Sequential(kind(), nn.GELU(), kind()) for _ in range(2))

    def forward(self, x):
        x = self.stem(x)
        for branch in self.branches:
            x = self.add(x, branch(x)) if self.training else x + branch(x)
        return x


@pytest.mark.parametrize("convolves", [False, True])
def test_a_sum_that_is_dropped_behind_its_branch_is_found(convolves):
    sums = [
        lambda x, branch: drop_path(x + drop_path(branch, 0.2), 0.5),
        lambda x, branch: drop_path(drop_path(branch, 0.2) + x, 0.5),
    ]
    for add in sums:
        (finding,) = findings(Sums(add, convolves=convolves))
        assert finding.code == "drop-path-twice"
        assert "behind the residual sum" in finding.message
    for add in (lambda x, branch: x + drop_path(branch, 0.2), lambda x, branch: drop_path(branch, 0.2) + x):
        assert codes(Sums(add, convolves=convolves)) == []


class Scores(nn.Module):
    """Attention that drops before or behind its softmax."""

    def __init__(self, *, before):
        super().__init__()
        self.query, self.key, self.dropout, self.before = (
            nn.Linear(8, 8),
            nn.Linear(8, 8),
            nn.Dropout(0.2),
            before,
        )

    def forward(self, x):
        scores = self.query(x) @ self.key(x).mT
        hidden = torch.full((6, 6), -1e9).triu(1)
        if self.before:
            return (self.dropout(scores) / 8**0.5 + hidden).softmax(-1) @ x
        return self.dropout((scores / 8**0.5 + hidden).softmax(-1)) @ x


def test_dropout_before_the_softmax_is_called_so():
    audit = td.audit(Scores(before=True), X)
    assert [(f.code, f.site) for f in audit.findings] == [("dropout-before-softmax", "dropout")]
    assert [event.kind for event in audit.events] == ["attention_scores"]
    audit = td.audit(Scores(before=False), X)
    assert audit.findings == ()
    assert [event.kind for event in audit.events] == ["attention_weights"]


def test_what_a_model_drops_itself_beside_a_recipe_is_found():
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 8))
    model[2].mlp_hidden_dropout = td.Dropout(0.3)
    model[2].register_forward_hook(
        lambda module, args, output: module.mlp_hidden_dropout(F.dropout(output, 0.1))
    )
    found = {finding.code: finding for finding in findings(model.train())}
    finding = found["own-dropout-beside-recipe"]
    assert finding.site == "2"
    assert (
        "own F.dropout still drops here with 0.1, beside the recipe's layer 2.mlp_hidden" in finding.message
    )
    assert "dropout-twice" not in found
