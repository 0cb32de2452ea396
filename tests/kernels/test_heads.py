"""The split of a joint projection, and the one gradient that is made of three."""

import pytest
import torch

from transformer_dropout.kernels.heads import SplitHeads, split_heads, views


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_the_parts_are_views_of_the_projection():
    qkv = torch.randn(2, 5, 3 * 4 * 6)
    for part, expected in zip(split_heads(qkv, 4), qkv.chunk(3, dim=-1), strict=True):
        assert part.data_ptr() == expected.data_ptr()
        assert torch.equal(part.transpose(1, 2).flatten(2), expected)


def test_gradients_from_anywhere_are_put_in_their_places():
    qkv = torch.randn(2, 5, 72, requires_grad=True)
    gradients = torch.randn(3, 2, 4, 5, 6)
    torch.autograd.backward(split_heads(qkv, 4), tuple(gradients))
    expected = gradients.permute(1, 3, 0, 2, 4).reshape(2, 5, 72)
    assert torch.equal(qkv.grad, expected)


def test_gradients_that_lie_side_by_side_are_not_copied(monkeypatch):
    joint, seen = torch.randn(2, 5, 72), []
    right = SplitHeads.backward
    monkeypatch.setattr(SplitHeads, "backward", lambda *a: seen.append(right(*a)[0]) or (seen[0], None))
    qkv = torch.randn(2, 5, 72, requires_grad=True)
    torch.autograd.backward(split_heads(qkv, 4), views(joint, 4))
    assert seen[0].data_ptr() == joint.data_ptr()
    assert torch.equal(qkv.grad, joint)


@pytest.mark.parametrize("part", range(3))
def test_a_part_that_nobody_used_has_no_gradient(part):
    qkv = torch.randn(2, 5, 72, requires_grad=True)
    split_heads(qkv, 4)[part].sum().backward()
    expected = [torch.full((2, 5, 24), float(number == part)) for number in range(3)]
    assert torch.equal(qkv.grad, torch.cat(expected, dim=-1))


def test_gradcheck_of_both_orders():
    qkv = torch.randn(1, 3, 12, dtype=torch.float64, requires_grad=True)

    def mixed(qkv):
        query, key, value = split_heads(qkv, 2)
        return (query @ key.mT) @ value

    assert torch.autograd.gradcheck(mixed, (qkv,))
    assert torch.autograd.gradgradcheck(mixed, (qkv,))
