"""What the dropout fields of Hugging Face configs mean: at which kinds of sites each one drops.

A place for which a recipe has no rule keeps the model's own rate, so a field may be left out: ``()`` marks
those that no model reads, and those of single places that share their kind with others. Read from
transformers 5.23.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import InputError, did_you_mean
from ._site import KINDS, Kind

Kinds = tuple[Kind, ...]

BRANCHES: Kinds = ("attention_output", "mlp_output")

FIELDS: dict[str, Kinds] = {
    "embd_pdrop": ("embedding",),
    "emb_pdrop": ("embedding",),
    "embedding_dropout": ("embedding",),
    "attn_pdrop": ("attention_weights",),
    "attention_dropout": ("attention_weights",),
    "attention_probs_dropout_prob": ("attention_weights",),
    "resid_pdrop": BRANCHES,
    "residual_dropout": BRANCHES,
    "hidden_dropout": BRANCHES,
    "hidden_dropout_prob": ("embedding", *BRANCHES),
    "dropout": ("embedding", *BRANCHES),
    "dropout_rate": ("embedding", "attention_weights", *BRANCHES, "mlp_hidden", "classifier"),
    "activation_dropout": ("mlp_hidden",),
    "mlp_dropout": ("mlp_hidden",),
    "layerdrop": ("block",),
    "encoder_layerdrop": ("block",),
    "decoder_layerdrop": ("block",),
    "classifier_dropout": ("classifier",),
    "classifier_dropout_prob": ("classifier",),
    "cls_dropout": ("classifier",),
    "seq_classif_dropout": ("classifier",),
    "summary_first_dropout": ("classifier",),
    "summary_last_dropout": (),
    "pooler_dropout": (),
    "qa_dropout": (),
}

# Where a family means something else by a name.
BY_MODEL_TYPE: dict[str, dict[str, Kinds]] = {
    "albert": {"hidden_dropout_prob": ("embedding", "attention_output")},
    "distilbert": {"dropout": ("embedding", "mlp_output")},
    "gpt_neox": {"hidden_dropout": ("embedding", *BRANCHES)},
    "modernbert": {"attention_dropout": ("attention_weights", "attention_output")},
    "mpt": {"attn_pdrop": ("attention_weights", *BRANCHES), "resid_pdrop": (), "emb_pdrop": ()},
    "opt": {"dropout": BRANCHES},
    "phi3": {"embd_pdrop": ()},
    "stablelm": {"hidden_dropout": ("mlp_output",)},
}

# Fields that only a seldom head reads; at these, their default, they say nothing about the model at hand.
SELDOM = {("gpt2", "summary_first_dropout"): 0.1, ("gpt_neox", "classifier_dropout"): 0.1}


def rates_in_config(config: Any) -> dict[Kind, float]:
    """Return the rates above 0 that a config says, by kind of site.

    Args:
        config: a config of transformers, its dictionary, or a few of its fields by name.

    Raises:
        InputError: for a field that is not known, is no number, or contradicts another.
    """
    data = config if isinstance(config, Mapping) else config.to_dict()
    family = str(data.get("model_type", ""))
    known = FIELDS | BY_MODEL_TYPE.get(family, {})
    found: dict[Kind, tuple[str, float]] = {}
    for name, value in fields_of(data, all_of_them="model_type" not in data):
        if value is None or value == 0 or SELDOM.get((family, name)) == value:
            continue
        if name not in known:
            raise InputError(
                f"The config field {name!r} is not known, so its {value!r} has no place; leave it out and "
                f"write a td.Rule.{did_you_mean(name, known)}"
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{name} is {value!r}, but a probability of dropping is a number from 0 to 1.")
        for kind in known[name]:
            other, rate = found.setdefault(kind, (name, float(value)))
            if rate != value:
                raise InputError(
                    f"{other} is {rate} and {name} is {value}, but both are for {kind}; leave one out "
                    "and write rules with paths."
                )
    return {kind: found[kind][1] for kind in KINDS if kind in found}


def fields_of(data: Mapping[str, Any], all_of_them: bool) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of the dropout fields of a config and of the configs inside it.

    Args:
        data: the config's dictionary.
        all_of_them: whether every field was meant as one of dropout, since nothing else is there.
    """
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from fields_of(value, all_of_them=False)
        elif all_of_them or ("drop" in str(name) and not isinstance(value, bool)):
            yield str(name), value
