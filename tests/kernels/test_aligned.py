"""Sizes filled up with zeros, against the same products without."""

import pytest
import torch
import torch.nn.functional as F

from transformer_dropout.kernels.aligned import aligned_linear, aligned_vocabulary


@pytest.mark.parametrize("shape", [(16, 24), (13, 24), (16, 21), (13, 21)])
@pytest.mark.parametrize("bias", [False, True])
def test_results_and_gradients_are_those_of_the_product(shape, bias):
    torch.manual_seed(0)
    outputs, inputs = shape
    tensors = [torch.randn(2, 3, inputs), torch.randn(shape)] + [torch.randn(outputs)] * bias
    for tensor in tensors:
        tensor.requires_grad_()
    found, expected = aligned_linear(*tensors), F.linear(*tensors)
    torch.testing.assert_close(found, expected)
    gradient = torch.randn_like(expected)
    pairs = zip(
        *(torch.autograd.grad(y, tensors, gradient, retain_graph=True) for y in (found, expected)),
        strict=True,
    )
    for ours, wanted in pairs:
        torch.testing.assert_close(ours, wanted)


def test_the_product_itself_has_full_sizes(monkeypatch):
    seen = []
    linear = F.linear
    monkeypatch.setattr(
        F, "linear", lambda x, *rest: seen.append((x.shape, rest[0].shape)) or linear(x, *rest)
    )
    aligned_linear(torch.randn(4, 156), torch.randn(30, 156))
    assert seen == [((4, 160), (32, 160))]


@pytest.mark.parametrize(("classes", "rows"), [(50257, 50304), (64, 64), (1, 64)])
def test_a_vocabulary_grows_by_rows_of_zeros(classes, rows):
    weight = torch.ones(classes, 2)
    filled = aligned_vocabulary(weight)
    assert filled.shape == (rows, 2)
    assert filled[:classes].equal(weight)
    assert not filled[classes:].any()
