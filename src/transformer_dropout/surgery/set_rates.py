"""`set_rates`: the dropout rates of a model in one line."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import InputError
from ..layers import Dropout
from ..recipe import Recipe, Rule
from ..schedules import Schedule
from ._refusals import handle_on, refuse_wrapped
from .regularize import Regularization, regularize_


def set_rates(
    model: nn.Module, rates: Mapping[str, float | str | Schedule], *, inputs: Any = None
) -> Regularization:
    """Set the dropout rates of a model in one line: ``set_rates(model, {"attention_weights": 0.1})``.

    Called again it sets the new rates in place of the old ones: what the last call names counts alone.

    Args:
        model: the model, changed in place.
        rates: by selector, a kind of site or a pattern on the path, the probability of dropping: a number, a
            schedule, or its compact text.
        inputs: what the model is called with, as in `regularize_`.

    Returns:
        the handle; the same one when the selectors are those of the last call.

    Raises:
        InputError: as `regularize_`, and for no rates at all; the old rates then stay.
    """
    if not rates:
        raise InputError('No place is named; write td.set_rates(model, {"attention_weights": 0.1}).')
    recipe = Recipe(Rule(selector, Dropout, p=rate) for selector, rate in rates.items())
    before = handle_on(model)
    if before is None or before.made_by != "set_rates":
        handle = regularize_(model, recipe, inputs=inputs)
    elif [rule.select for rule in before.recipe.rules] == list(rates):
        before.renew(recipe)
        return before
    else:
        # What can be told without taking the layers out, which not every model gets back.
        refuse_wrapped(model)
        before.remove()
        try:
            handle = regularize_(model, recipe, inputs=inputs)
        except InputError:
            before.put_back()
            raise
    handle.made_by = "set_rates"
    return handle
