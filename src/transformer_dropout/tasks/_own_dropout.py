"""Rules for pre-trained models, whose own dropout must not act beside an arm's."""

from torch import nn

from ..errors import InputError
from ..layers import Dropout, LearnedDropout
from ..recipe import Rule
from ..sites import Site

# Keeps cos^2(0.15) = 98 % at the start. At 0 exactly the cosine is flat, and nothing is learned.
LEARNED_SHIFT = 0.3
LEARNED_WEIGHT = 0.1


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
    """Return whether the model itself has a place for dropout here, rather than a hook of ours."""
    return site.rate is not None or site.access in ("module", "rate")
