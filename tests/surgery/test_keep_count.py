"""Fractions of what masks keep, over several forwards."""

import torch

from transformer_dropout.surgery._keep_count import KeepCount


def test_fractions_are_of_all_elements_so_far():
    count = KeepCount()
    count.add(torch.tensor([0.2, 0.5, 0.9, 0.6]), torch.tensor([0.0, 1.0, 0.0, 0.0]))
    assert count.fractions() == {"keep": 0.25, "keep_thresholded": 0.75}
    count.add(torch.full((2, 2), 0.1), torch.ones(2, 2))
    assert count.fractions() == {"keep": 0.625, "keep_thresholded": 0.375}


def test_a_count_is_exact_in_half_precision():
    count = KeepCount()
    count.add(torch.ones(2049, dtype=torch.float16), torch.ones(2049, dtype=torch.float16))
    assert count.fractions() == {"keep": 1.0, "keep_thresholded": 1.0}
