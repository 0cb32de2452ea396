"""The arms of fine-tuning a language model, each with the model's own dropout off where it has no rule."""

from typing import Any

from torch import nn

from ... import recipes
from ...layers import Dropout
from ...recipe import Recipe, Rule
from ...schedules import Linear
from ...sites import find_sites
from .._own_dropout import learned_rule, silence

EPOCHS = 3
BATCH = 8
EVALUATIONS = 6
WARMUP = 0.06
# LoRA's matrices begin at nothing and bear far more than pre-trained ones.
FULL_LR, LORA_LR = 1e-4, 1e-3
L2SP_WEIGHT = 0.01


def default_arms(model: nn.Module, examples: int, lora: bool) -> list[dict[str, Any]]:
    """Return the arms for a model and so many examples to train on."""
    terms: dict[str, dict[str, Any]] = {"weight decay": {"weight_decay": 0.3}, "l2sp": {"l2_sp": L2SP_WEIGHT}}
    made = make_recipes(model, lora)
    return [
        {"name": name, "recipe": recipe, "training": length(examples, lora) | terms.get(name, {})}
        for name, recipe in made.items()
    ]


def length(examples: int, lora: bool) -> dict[str, Any]:
    """Return the training settings: three passes, with a learning rate that falls in a straight line."""
    steps = EPOCHS * -(-examples // BATCH)
    return {
        "steps": steps,
        "eval_every": max(1, steps // EVALUATIONS),
        "batch": BATCH,
        "lr": {"linear": {"start": LORA_LR if lora else FULL_LR, "end": 0.0}},
        "warmup_steps": round(WARMUP * steps),
        "weight_decay": 0.01,
        "beta2": 0.999,
    }


def make_recipes(model: nn.Module, lora: bool) -> dict[str, list[dict[str, Any]]]:
    """Return the recipe of each arm as plain data.

    ``falling`` is the adaptive dropout whose rate falls to 0 while the model is fine-tuned.
    """
    sites = find_sites(model)
    standard = list(recipes.standard(0.1).rules)
    rules = {
        "none": [],
        "dropout": standard,
        "falling": list(recipes.standard(Linear(0.1, 0.0)).rules),
        "late": list(recipes.late(0.1).rules),
        "weight decay": [],
        **({"lora dropout": [Rule("lora", Dropout, p=0.1)]} if lora else {"l2sp": standard}),
        "learned": [learned_rule(model)],
    }
    return {name: Recipe([*own, *silence(own, sites)]).to_data() for name, own in rules.items()}
