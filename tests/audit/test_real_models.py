"""Each finding on a transformer of Hugging Face: provoked in the way it happens, and absent without it."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, PoolFormerConfig, PoolFormerModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import transformer_dropout as td
from transformer_dropout.audit import assert_clean
from transformer_dropout.audit.tiny_models import tiny_inputs, tiny_model

CODES = {
    "active-in-eval",
    "dead-field",
    "never-called",
    "kernel-drops-attention-dropout",
    "dropout-before-batch-norm",
    "dropout-before-output",
    "frozen-but-drops",
    "recompute-mask-differs",
    "schedule-recompiles",
    "weight-decay-on-norms",
    "eval-while-training",
    "varies-in-eval",
    "dropout-twice",
    "drop-path-twice",
    "dropout-before-softmax",
    "own-dropout-beside-recipe",
}


class Forgetful(nn.Dropout):
    """A dropout that does not look at its mode."""

    def forward(self, x):
        return F.dropout(x, self.p)


class Pooled(nn.Module):
    """A transformer with a head of its own, whose batch norm sees what was dropped."""

    def __init__(self, body, norm):
        super().__init__()
        self.body, self.norm, self.head = body, norm, nn.Linear(32, 2)

    def forward(self, **inputs):
        hidden = self.body(**inputs, output_hidden_states=True).hidden_states[-1]
        return self.head(F.relu(self.norm(hidden.mean(1))))


def ignores_the_rate(module, query, key, value, mask, dropout=0.0, **kwargs):
    return sdpa_attention_forward(module, query, key, value, mask, dropout=0.0, **kwargs)


class ModuleRates:
    """A schedule that writes ``p`` of a model's own dropouts."""

    progress = 0.0

    def __init__(self, model):
        self.layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]

    def set_progress(self, progress):
        self.progress = progress
        for layer in self.layers:
            layer.p = 0.5 * progress


def gpt2(**fields):
    return tiny_model("gpt2", **({"summary_first_dropout": 0.0} | fields))


def active_in_eval(model):
    model.transformer.h[1].mlp.dropout = Forgetful(0.2)
    return model, {}


def dead_field(model):
    model.config.resid_pdrop = 0.25
    return model, {}


def never_called(model):
    model.transformer.h[0].mlp.forgotten = nn.Dropout(0.3)
    return model, {}


def kernel_drops_attention_dropout(model):
    AttentionInterface.register("ignores_the_rate", ignores_the_rate)
    model.set_attn_implementation("ignores_the_rate")
    return model, {}


def dropout_before_batch_norm(model):
    return Pooled(model, nn.BatchNorm1d(32)), {}


def dropout_before_output(model):
    td.set_rates(model, {"classifier": 0.1})
    model.config.problem_type = "regression"
    return model, {}


def dropout_twice(model):
    model.transformer.h[1].mlp.dropout = nn.Sequential(nn.Dropout(0.2), nn.Dropout(0.1))
    return model, {}


def drop_path_twice(model):
    model.transformer.h[1].mlp.register_forward_hook(
        lambda module, args, y: skipped(skipped(y)) if module.training else y
    )
    return model, {}


def skipped(branch):
    return branch * (torch.rand(len(branch), 1, 1) > 0.4) / 0.6


def dropout_before_softmax(model):
    AttentionInterface.register("drops_scores", drops_scores)
    model.set_attn_implementation("drops_scores")
    return model, {}


def drops_scores(module, query, key, value, mask, dropout=0.0, **kwargs):
    scores = F.dropout(query @ key.mT, dropout, module.training) / query.shape[-1] ** 0.5
    return (scores.softmax(-1) @ value).transpose(1, 2), None


def own_dropout_beside_recipe(model):
    td.set_rates(model, {"mlp_output": 0.2})
    mlp = model.transformer.h[0].mlp
    mlp.c_proj.register_forward_hook(lambda module, args, y: F.dropout(y, 0.1, module.training))
    return model, {}


def frozen_but_drops(model):
    model.transformer.h[0].requires_grad_(False)
    return model, {}


def recompute_mask_differs(model):
    model.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    return model, {}


def schedule_recompiles(model):
    return model, {"regularization": ModuleRates(model)}


def weight_decay_on_norms(model):
    return model, {"optimizer": torch.optim.AdamW(model.parameters(), weight_decay=0.1)}


def eval_while_training(model):
    model.transformer.eval()
    return model, {}


def varies_in_eval(model):
    own = np.random.default_rng(0)
    model.lm_head.register_forward_hook(lambda module, args, output: output * own.random())
    return model, {}


PROVOKED = {code: globals()[code.replace("-", "_")] for code in CODES}


def inputs():
    return tiny_inputs(gpt2()) | {"use_cache": False}


OF_THE_WHOLE = {"schedule-recompiles", "varies-in-eval"}
SLOW = {"schedule-recompiles"}


@pytest.mark.parametrize(
    "code", [pytest.param(code, marks=[pytest.mark.slow] * (code in SLOW)) for code in sorted(CODES)]
)
# GPT-2's loss breaks the graph, in a plain model too, and the compiler then looks at a gradient that is none.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_each_finding_is_provoked_alone(code):
    torch._dynamo.reset()
    model, options = PROVOKED[code](gpt2().train())
    audit = td.audit(model, inputs(), **options)
    assert {finding.code for finding in audit.findings} == {code}
    assert all(finding.site or code in OF_THE_WHOLE for finding in audit.findings)
    with pytest.raises(td.InputError, match=code):
        audit.raise_if(code)
    audit.raise_if(*CODES - {code})


def test_a_branch_that_a_model_of_transformers_drops_twice_is_found():
    sizes = {"depths": [1, 1, 2, 1], "hidden_sizes": [8] * 4, "mlp_ratio": 2.0}
    model = PoolFormerModel(PoolFormerConfig(**sizes, drop_path_rate=0.3))
    found = td.audit(model.train(), torch.randn(2, 3, 64, 64)).findings
    assert {finding.code for finding in found} == {"drop-path-twice"}
    assert [finding.site for finding in found] == [
        "encoder.block.*.*.output.drop",
        "encoder.block.*.*.drop_path",
    ]
    assert "0.075 to 0.3" in found[0].message


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_sane_model_with_everything_has_no_finding():
    torch._dynamo.reset()
    model = gpt2().train()
    falling = td.Linear(0.3, 0.1)
    recipe = td.Recipe(td.Rule(k, td.Dropout, p=falling) for k in ("mlp_output", "attention_weights"))
    handle = td.regularize_(model, recipe)
    model.activation_checkpointing_enable({"use_reentrant": False})
    groups = td.weight_decay_groups(model, 0.1)
    assert_clean(model, inputs(), optimizer=torch.optim.AdamW(groups), regularization=handle)
    assert_clean(Pooled(gpt2().train(), nn.LayerNorm(32)), inputs())
    frozen = gpt2().train()
    frozen.transformer.h[0].requires_grad_(False).eval()
    assert_clean(frozen, inputs())


@pytest.mark.parametrize(
    ("family", "rates"),
    [
        ("gpt2", {"attention_output": 0.3, "attention_weights": 0.2}),
        ("bert", {"attention_weights": 0.2, "classifier": 0.0}),
        ("llama", {"attention_output": 0.3, "mlp_output": 0.1}),
    ],
)
def test_a_recipe_leaves_no_finding_behind(family, rates):
    model = tiny_model(family)
    td.set_rates(model, rates)
    audit = td.audit(model, tiny_inputs(model))
    assert audit.findings == ()
    assert {event.resolved for event in audit.events} >= {rate for rate in rates.values() if rate}


def test_a_recipe_elsewhere_does_not_hide_a_module_that_is_never_called():
    model = gpt2()
    td.set_rates(model, {"attention_output": 0.3})
    model.forgotten = nn.Dropout(0.3)
    found = [(finding.code, finding.site) for finding in td.audit(model, inputs()).findings]
    assert found == [("never-called", "forgotten")]


def test_a_part_in_evaluation_is_named_and_its_fields_are_not_blamed():
    model = gpt2().train()
    model.transformer.h.eval()
    (finding,) = td.audit(model, inputs()).findings
    assert (finding.code, finding.site) == ("eval-while-training", "transformer.h")
    assert {field.read_at for field in td.audit(model, inputs()).fields} == {None}


def test_a_config_field_of_a_regularized_model_is_a_note():
    model = tiny_model("bert", hidden_dropout_prob=0.15)
    td.set_rates(model, dict.fromkeys(("embedding", "attention_output", "mlp_output", "classifier"), 0.3))
    audit = td.audit(model, tiny_inputs(model))
    assert "dead-field" not in {finding.code for finding in audit.findings}
    assert any(note.startswith("config.hidden_dropout_prob has no effect") for note in audit.notes)


def test_the_page_lists_every_finding():
    page = (Path(__file__).parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")
    source = Path(td.audit.__code__.co_filename).parent
    codes = {c for file in source.glob("*.py") for c in re.findall(r'code="([a-z-]+)"', file.read_text())}
    assert set(re.findall(r"^\| `([a-z-]+)` \|", page, flags=re.M)) == codes == CODES | {"random-in-eval"}
