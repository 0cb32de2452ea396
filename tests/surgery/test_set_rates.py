"""Rates of places, set by one call: what it is given reaches the search for them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

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


class SharedModule(nn.Module):
    """One dropout for the weights of attention, its output and the MLP's."""

    def __init__(self):
        super().__init__()
        self.norm, self.query, self.out = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        self.dropout, self.p = nn.Dropout(0.2), 0.2

    def drop(self, x):
        return self.dropout(x)

    def forward(self, x):
        q = self.query(self.norm(x))
        mixed = self.drop((q @ q.transpose(-1, -2)).softmax(-1)) @ q
        x = x + self.drop(self.out(mixed))
        return x + self.drop(self.mlp(self.norm(x)))


class SharedNumber(SharedModule):
    """One number for all three."""

    def drop(self, x):
        return F.dropout(x, self.p, self.training)


@pytest.mark.parametrize("block", [SharedModule, SharedNumber])
def test_weights_that_share_their_rate_have_it_alone_or_none(block):
    model, x = nn.Sequential(block(), block(), nn.Linear(8, 3)).train(), torch.randn(2, 5, 8)
    for rates in ({"mlp_output": 0.5}, {"mlp_output": 0.5, "attention_weights": td.Linear(0.0, 0.3)}):
        with pytest.raises(td.InputError, match=r"is the rate of 0 \(attention_weights\) and of 0\.out"):
            td.set_rates(model, rates, inputs=(x,))
    assert [event.resolved for event in td.audit(model, (x,)).events] == [0.2] * 6
    td.set_rates(model, {"attention_weights": 0.0, "mlp_output": 0.5}, inputs=(x,))
    dropped = [(event.kind, event.resolved) for event in td.audit(model, (x,)).events]
    assert dropped == [("attention_output", 0.2), ("mlp_output", 0.5)] * 2
