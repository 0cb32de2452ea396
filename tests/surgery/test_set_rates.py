"""Rates of places, set by one call: what it is given reaches the search for them."""

import pytest

import transformer_dropout as td


def test_places_are_found_by_running_the_inputs_that_are_given(unguessable):
    model, inputs = unguessable
    first = td.set_rates(model, {"mlp_output": 0.1}, inputs=inputs)
    assert {placed.site.found for placed in first.placed} == {"run"}
    second = td.set_rates(model, {"mlp_hidden": 0.2}, inputs=inputs)
    assert second is not first
    assert {(placed.site.found, placed.site.kind, placed.layer.p) for placed in second.placed} == {
        ("run", "mlp_hidden", 0.2)
    }


def test_no_rates_are_refused(unguessable):
    with pytest.raises(td.InputError, match="No place is named"):
        td.set_rates(unguessable[0], {})
