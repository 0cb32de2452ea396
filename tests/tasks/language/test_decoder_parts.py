"""Which models may be read past their modules, and which not."""

import pytest
import torch

import transformer_dropout as td
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig
from transformer_dropout.tasks.language.decoder_parts import has_known_parts_only

LEARNED = td.Rule("mlp_output", td.LearnedDropout, heads=3)
EARLY = td.Rule("mlp_output", td.PrecomputedLearnedDropout, heads=3)
RATES = {
    "attention_weights": td.DropKey,
    "attention_output": td.TokenDropout,
    "mlp_hidden": td.GaussianDropout,
    "mlp_output": td.AlphaDropout,
    "embedding": td.Dropout,
    "block": td.DropPath,
}


def regularized(*rules):
    model = Decoder(50, DecoderConfig(width=24, heads=2, blocks=3, context=40))
    td.regularize_(model, td.Recipe(rules))
    return model.eval()


@pytest.mark.parametrize(
    "rules",
    [
        [],
        [LEARNED],
        [EARLY],
        [td.Rule("attention_output", td.LearnedDropout, heads=4), EARLY],
        [td.Rule(select, layer, p=0.5) for select, layer in RATES.items()],
        [td.Rule("mlp_output", td.ConcreteDropout), td.Rule("mlp_hidden", td.ImportanceDropout, p=0.1)],
    ],
    ids=["none", "learned", "pre-computed", "both", "rates", "learned rates"],
)
def test_models_of_parts_that_are_known(rules):
    assert has_known_parts_only(regularized(*rules))


def gate(model):
    return model.blocks[2].mlp.mlp_output_dropout


CHANGES = {
    "training": lambda model: model.train(),
    "one part training": lambda model: model.blocks[0].mlp.train(),
    "a hook": lambda model: model.blocks[1].register_forward_hook(lambda *_: None),
    "a pre-hook": lambda model: model.norm.register_forward_pre_hook(lambda *_: None),
    "a forward of its own": lambda model: setattr(model.blocks[0].mlp, "forward", lambda x: x),
    "a formula of its own": lambda model: setattr(gate(model), "keep_probability", torch.sigmoid),
    "a part of another kind": lambda model: setattr(model.blocks[0].mlp, "activation", torch.nn.ReLU()),
    "another GELU": lambda model: setattr(model.blocks[0].mlp.activation, "approximate", "tanh"),
    "another epsilon": lambda model: setattr(model.norm, "eps", 1e-6),
    "a mean mask": lambda model: setattr(gate(model), "eval_mask", "mean"),
    "a drawn mask": lambda model: setattr(gate(model), "eval_mask", "sample"),
    "a mask that looks ahead": lambda model: setattr(gate(model), "causal", False),
    "an observed mask": lambda model: setattr(gate(model), "observer", lambda *_: None),
    "a compiled part": lambda model: model.blocks[0].compile(backend="eager"),
    "a parametrized weight": lambda model: torch.nn.utils.parametrizations.weight_norm(
        model.blocks[0].mlp.expand
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_asks_for_more_is_not(change):
    model = regularized(LEARNED)
    assert has_known_parts_only(model)
    CHANGES[change](model)
    assert not has_known_parts_only(model)


class SubclassedMask(td.LearnedDropout):
    """A mask that somebody else may have defined anew."""


@pytest.mark.parametrize(
    "rules",
    [
        [td.Rule("mlp_hidden", td.LearnedDropout, heads=3)],
        [td.Rule("embedding", td.LearnedDropout, heads=3)],
        [td.Rule("mlp_output", td.Standout)],
        [td.Rule("mlp_output", SubclassedMask, heads=3)],
        [EARLY, td.Rule("attention_output", td.PrecomputedLearnedDropout, heads=3)],
    ],
    ids=["hidden", "embedding", "standout", "subclass", "two attentions over the embeddings"],
)
def test_so_is_a_layer_that_acts_elsewhere_or_otherwise(rules):
    assert not has_known_parts_only(regularized(*rules))


def test_so_is_another_model_and_any_under_autocast():
    assert not has_known_parts_only(torch.nn.Linear(3, 3))
    with torch.autocast("cpu", torch.bfloat16):
        assert not has_known_parts_only(regularized(LEARNED))
