import pytest
import torch
from torch import nn


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


@pytest.fixture
def unguessable():
    """A model and its inputs, without which nothing can be told of it."""
    return Summing(), (torch.randn(2, 3, 8), torch.randn(8))
