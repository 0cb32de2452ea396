"""The arms of a fine-tuning, each with the model's own dropout off wherever the arm has no rule."""

from typing import Any

from torch import nn

from ... import recipes
from ...layers import Dropout
from ...recipe import Recipe, Rule
from ...schedules import Linear, Schedule
from ...sites import Site, find_sites
from .._own_dropout import has_own_dropout, learned_rule, silence

# The paper's alpha is 1 to 5; the smallest leaves the most to the two cross-entropies.
RDROP_WEIGHT = 1.0
# Under Adam a pull of this strength is felt, but does not hold the weights where they are.
L2SP_WEIGHT = 0.01
# Up to so many sentences a fine-tuning needs more passes, and bears a higher learning rate.
FEW = 2000
BATCH = 32
WARMUP = 0.06


def default_arms(model: nn.Module, sentences: int) -> list[dict[str, Any]]:
    """Return the arms for a model and so many sentences to train on.

    Raises:
        InputError: when the model has no place for an arm.
    """
    terms = {"rdrop": {"rdrop": RDROP_WEIGHT}, "l2sp": {"l2_sp": L2SP_WEIGHT}}
    training = length(sentences)
    return [
        {"name": name, "recipe": recipe, "training": training | terms.get(name, {})}
        for name, recipe in make_recipes(model).items()
    ]


def length(sentences: int) -> dict[str, Any]:
    """Return the training settings: eight passes over few sentences, three over many."""
    few = sentences <= FEW
    per_epoch = -(-sentences // BATCH)
    steps = (8 if few else 3) * per_epoch
    return {
        "steps": steps,
        "eval_every": per_epoch,
        "batch": BATCH,
        "lr": {"linear": {"start": 5e-5 if few else 3e-5, "end": 0.0}},
        "warmup_steps": round(WARMUP * steps),
        "weight_decay": 0.01,
        "beta2": 0.999,
    }


def make_recipes(model: nn.Module) -> dict[str, list[dict[str, Any]]]:
    """Return the recipe of each arm as plain data.

    Raises:
        InputError: when the model has no place for an arm.
    """
    sites = find_sites(model)
    n_blocks = max((site.n_blocks for site in sites), default=0)
    bert = bert_rules(0.1, sites)
    rules = {
        "none": [],
        "bert": bert,
        "adaptive": bert_rules(Linear(0.1, 0.0), sites),
        "layerwise": list(recipes.layerwise(n_blocks).rules),
        "learned": [learned_rule(model)],
        "rdrop": bert,
        "l2sp": bert,
    }
    return {name: Recipe([*own, *silence(own, sites)]).to_data() for name, own in rules.items()}


def bert_rules(p: float | Schedule, sites: list[Site]) -> list[Rule]:
    """Return BERT's dropout, the classifier's included, which fine-tuning has as well."""
    rules = list(recipes.standard(p).rules)
    if any(site.kind == "classifier" and has_own_dropout(site) for site in sites):
        rules.append(Rule("classifier", Dropout, p=p))
    return rules
