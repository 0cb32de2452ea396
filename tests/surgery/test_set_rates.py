"""Rates of places, set by one call: what it is given reaches the search for them."""

import pytest
import torch
from torch import nn

import transformer_dropout as td


class Summing(nn.Module):
    """A model whose inputs nobody can guess."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)) for _ in "ab"
        )

    def forward(self, x, weights):
        for block in self.blocks:
            x = x + block(x)
        return (x * weights).sum(-1)


def test_places_are_found_by_running_the_inputs_that_are_given():
    model, inputs = Summing(), (torch.randn(2, 3, 8), torch.randn(8))
    first = td.set_rates(model, {"mlp_output": 0.1}, inputs=inputs)
    assert {placed.site.found for placed in first.placed} == {"run"}
    second = td.set_rates(model, {"mlp_hidden": 0.2}, inputs=inputs)
    assert second is not first
    assert {(placed.site.found, placed.site.kind, placed.layer.p) for placed in second.placed} == {
        ("run", "mlp_hidden", 0.2)
    }


def test_no_rates_are_refused():
    with pytest.raises(td.InputError, match="No place is named"):
        td.set_rates(Summing(), {})
