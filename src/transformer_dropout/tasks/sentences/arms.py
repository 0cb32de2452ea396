"""The arms of a fine-tuning: what regularizes, as the recipe of a run config.

A recipe here is a list of rules, as `Recipe.to_data` writes them, and of terms of the loss, which are
``{term: RDrop, weight: 1.0}`` and ``{term: L2SP, weight: 0.01}``.
"""

from typing import Any

from torch import nn

from ... import recipes
from ...errors import InputError, did_you_mean
from ...layers import Dropout, LearnedDropout
from ...recipe import Recipe, Rule
from ...schedules import Linear, Schedule
from ...sites import Site, find_sites

# The paper's alpha is 1 to 5; the smallest leaves the most to the two cross-entropies.
RDROP_WEIGHT = 1.0
# Under Adam a pull of this strength is felt, but does not hold the weights where they are.
L2SP_WEIGHT = 0.01
# Keeps cos^2(0.15) = 98 % at the start. At 0 exactly the cosine is flat, and nothing is learned.
LEARNED_SHIFT = 0.3
LEARNED_WEIGHT = 0.1

TERMS = ("RDrop", "L2SP")

Entry = dict[str, Any]


def make_arms(model: nn.Module) -> dict[str, list[Entry]]:
    """Return the arms for a model, each with the model's own dropout off where the arm has no rule.

    Args:
        model: the classifier, as loaded.

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
    terms = {
        "rdrop": [{"term": "RDrop", "weight": RDROP_WEIGHT}],
        "l2sp": [{"term": "L2SP", "weight": L2SP_WEIGHT}],
    }
    return {
        name: [*Recipe([*own, *silence(own, sites)]).to_data(), *terms.get(name, [])]
        for name, own in rules.items()
    }


def bert_rules(p: float | Schedule, sites: list[Site]) -> list[Rule]:
    """Return BERT's dropout, the classifier's included, which fine-tuning has as well."""
    rules = list(recipes.standard(p).rules)
    if any(site.kind == "classifier" and has_own_dropout(site) for site in sites):
        rules.append(Rule("classifier", Dropout, p=p))
    return rules


def learned_rule(model: nn.Module) -> Rule:
    """Return learned masks on the MLPs' outputs, with as many heads as the model's own attention."""
    heads = getattr(model.config, "num_attention_heads", None)
    if not isinstance(heads, int):
        raise InputError("The config of this model has no num_attention_heads, which the learned arm needs.")
    return Rule("mlp_output", LearnedDropout, heads=heads, shift=LEARNED_SHIFT, weight=LEARNED_WEIGHT)


def silence(rules: list[Rule], sites: list[Site]) -> list[Rule]:
    """Return the rules that set the model's own dropout to 0 wherever the others do not act."""
    left = [s for s in sites if has_own_dropout(s) and not any(rule.matches(s) for rule in rules)]
    return [Rule(kind, Dropout, p=0.0) for kind in dict.fromkeys(site.kind for site in left)]


def has_own_dropout(site: Site) -> bool:
    """Say whether the model itself has a place for dropout here, rather than a hook of ours."""
    return site.rate is not None or site.access in ("module", "rate")


def parts_of(recipe: list[Entry]) -> tuple[Recipe, dict[str, float]]:
    """Return a recipe's rules, and its terms of the loss with their weights.

    Raises:
        InputError: for an unknown term, or a weight that is no number from 0 on.
    """
    terms: dict[str, float] = {}
    for entry in recipe:
        if "term" not in entry:
            continue
        name, weight = str(entry["term"]), entry.get("weight")
        if name not in TERMS:
            raise InputError(f"There is no term {name!r} of the loss.{did_you_mean(name, TERMS)}")
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not weight >= 0:
            raise InputError(f"The weight of {name} is {weight!r}, but it is a number from 0 on.")
        terms[name] = float(weight)
    return Recipe.from_data(entry for entry in recipe if "term" not in entry), terms
