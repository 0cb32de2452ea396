"""The arms of ``dropout compare`` without arguments.

A setting in which regularization matters: many passes over a small fixed set, where plain dropout beats
none on validation.
"""

from typing import Any

from ...runs.run_config import RunConfig, TrainingConfig
from .data import DataConfig
from .decoder import DecoderConfig

SEEDS = 3

SITES = ("embedding", "attention_weights", "attention_output", "mlp_output")


def dropout(p: float) -> list[dict[str, Any]]:
    """Return the recipe of standard dropout at the four places where GPT has it."""
    return [{"select": site, "layer": "Dropout", "p": p} for site in SITES]


def learned(layer: str) -> list[dict[str, Any]]:
    """Return the recipe of a learned mask after the MLP, as published."""
    return [{"select": "mlp_output", "layer": layer, "heads": 4, "penalty": "squared", "weight": 0.1}]


def arm(name: str, recipe: list[dict[str, Any]], weight_decay: float = 0.1) -> RunConfig:
    """Return one arm; all share model, data, length and learning rate."""
    return RunConfig(
        name=name,
        model=DecoderConfig(width=96, heads=4, blocks=2, context=32),
        recipe=recipe,
        data=DataConfig(
            source="stdlib-docs", tokenizer="bytes", train_tokens=20_000, validation_tokens=40_000
        ),
        training=TrainingConfig(
            steps=1000, batch=16, lr=3e-3, min_lr=1e-4, eval_every=125, weight_decay=weight_decay
        ),
    )


def default_arms() -> list[RunConfig]:
    """Return no regularizer, plain dropout, weight decay, both, and LearnedDropout in its two forms."""
    return [
        arm("none", []),
        arm("dropout p=0.1", dropout(0.1)),
        arm("weight decay 3", [], weight_decay=3.0),
        arm("dropout p=0.1 + weight decay 1", dropout(0.1), weight_decay=1.0),
        arm("LearnedDropout", learned("LearnedDropout")),
        arm("LearnedDropout, pre-computed masks", learned("PrecomputedLearnedDropout")),
    ]
