"""Tensors in shards; those of two processes are in ``test_composition.py``."""

import torch

from transformer_dropout.kernels.sharded import is_sharded, like_shards, sum_of, whole


def test_a_whole_tensor_stays_as_it_is():
    tensor = torch.arange(3)
    assert not is_sharded(tensor)
    assert whole(tensor) is tensor
    assert like_shards(tensor, torch.zeros(3)) is tensor


def test_scalars_are_summed():
    scalars = [torch.tensor(value, requires_grad=True) for value in (1.0, 2.0)]
    total = sum_of(3 * scalar for scalar in scalars)
    total.backward()
    assert total == 9
    assert [scalar.grad for scalar in scalars] == [3, 3]
