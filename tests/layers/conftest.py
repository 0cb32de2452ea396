import pytest
import torch


class Remembered:
    """The keys and values of earlier tokens."""

    def __init__(self):
        self.pair = None

    def extend(self, *new):
        before = self.pair or [part[:, :, :0] for part in new]
        self.pair = [torch.cat(parts, dim=2) for parts in zip(before, new, strict=True)]
        return self.pair


@pytest.fixture
def past():
    """The keys and values of no token yet."""
    return Remembered()
