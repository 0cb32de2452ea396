"""The arms of ``dropout compare`` without arguments.

A setting in which regularization matters: many passes over a small fixed set, where plain dropout beats
none on validation.
"""

from collections.abc import Mapping
from typing import Any

from ...runs.dataclass_from_data import dataclass_from_data
from .data import DataConfig, prepare

SITES = ("embedding", "attention_weights", "attention_output", "mlp_output")
MODEL = {"width": 96, "heads": 4, "blocks": 2, "context": 32}
LIMITS = {"train_tokens": 20_000, "validation_tokens": 40_000}
TRAINING = {"steps": 1000, "batch": 16, "lr": 3e-3, "min_lr": 1e-4, "eval_every": 125}


def default_arms(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return no regularizer, plain dropout, weight decay, both, and LearnedDropout in its two forms.

    Args:
        data: keys of the section ``data`` that the user sets; no more is taken of another text than there is.
    """
    limits = LIMITS if not data else at_most(data)
    section = {"source": "stdlib-docs", "tokenizer": "bytes", **limits, **data}
    return [
        arm(section, "none", []),
        arm(section, "dropout p=0.1", dropout(0.1)),
        arm(section, "weight decay 3", [], weight_decay=3.0),
        arm(section, "dropout p=0.1 + weight decay 1", dropout(0.1), weight_decay=1.0),
        arm(section, "LearnedDropout", learned_mask_rule("LearnedDropout")),
        arm(section, "LearnedDropout, pre-computed masks", learned_mask_rule("PrecomputedLearnedDropout")),
    ]


def at_most(data: Mapping[str, Any]) -> dict[str, int]:
    """Return the limits, or what a text has where that is less."""
    whole = {**data, "train_tokens": None, "validation_tokens": None}
    prepared = prepare(dataclass_from_data(DataConfig, whole, {}, ("data",)))
    there = {"train_tokens": len(prepared.train), "validation_tokens": len(prepared.validation)}
    return {key: min(limit, there[key]) for key, limit in LIMITS.items()}


def dropout(p: float) -> list[dict[str, Any]]:
    """Return the recipe of standard dropout at the four places where GPT has it."""
    return [{"select": site, "layer": "Dropout", "p": p} for site in SITES]


def learned_mask_rule(layer: str) -> list[dict[str, Any]]:
    """Return the recipe of a learned mask after the MLP, as published."""
    return [{"select": "mlp_output", "layer": layer, "heads": 4, "penalty": "squared", "weight": 0.1}]


def arm(
    data: dict[str, Any], name: str, recipe: list[dict[str, Any]], weight_decay: float = 0.1
) -> dict[str, Any]:
    """Return one arm; all share model, data, length and learning rate."""
    training = TRAINING | {"weight_decay": weight_decay}
    return {"name": name, "model": MODEL, "recipe": recipe, "data": data, "training": training}
