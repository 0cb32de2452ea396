import pytest
import torch

from transformer_dropout.errors import InputError
from transformer_dropout.layers import LearnedPositionwiseDropout

WIDTH = 8


def layer(rank=None, **words):
    torch.manual_seed(0)
    built = LearnedPositionwiseDropout(WIDTH, rank, shift=1.2, **words)
    for parameter in built.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.6)
    return built


@pytest.mark.parametrize("rank", [None, 2])
def test_the_mask_is_the_cosine_of_a_linear_function_of_the_token(rank):
    built, x = layer(rank, eval_mask="mean").eval(), torch.randn(3, 5, WIDTH)
    inner = x if rank is None else x @ built.down.weight.T
    expected = 0.5 * torch.cos(inner @ built.up.weight.T + built.shift) + 0.5
    torch.testing.assert_close(built(x), x * expected)


def test_no_token_changes_the_mask_of_another():
    built, x = layer(eval_mask="mean").eval(), torch.randn(3, 5, WIDTH)
    changed = x.clone()
    changed[:, 2] = 7.0
    others = torch.tensor([0, 1, 3, 4])
    assert torch.equal(built(changed)[:, others], built(x)[:, others])
    assert not torch.equal(built(changed)[:, 2] / 7, built(x)[:, 2] / x[:, 2])


@pytest.mark.parametrize(("rank", "count"), [(None, WIDTH**2), (2, 4 * WIDTH)])
def test_it_costs_a_matrix_or_two_thin_ones(rank, count):
    assert sum(p.numel() for p in layer(rank).parameters()) == count + WIDTH


def test_tokens_of_any_shape_are_masked_alike():
    built, x = layer().eval(), torch.randn(3, 5, WIDTH)
    assert torch.equal(built(x.flatten(0, 1)), built(x).flatten(0, 1))


def test_its_arguments_are_those_of_the_gate():
    plain = LearnedPositionwiseDropout(WIDTH)
    assert (plain.rank, plain.eval_mask, plain.penalty, plain.detach) == (None, "threshold", "squared", False)
    assert plain.up.bias is None and plain.shift.tolist() == [0.0] * WIDTH
    words = {"shift": 0.5, "bias": True, "eval_mask": "mean", "penalty": None, "detach": True}
    built = LearnedPositionwiseDropout(WIDTH, 2, **words)
    assert (built.rank, built.eval_mask, built.penalty, built.detach) == (2, "mean", None, True)
    assert built.down.bias is not None and built.up.bias is not None and built.shift.tolist() == [0.5] * WIDTH
    assert built.extra_repr() == "width=8, rank=2, eval_mask='mean'"
    with pytest.raises(InputError, match="rank is 0"):
        LearnedPositionwiseDropout(WIDTH, 0)


@pytest.mark.parametrize("rank", [None, 16])
def test_the_gate_starts_as_large_at_any_rank(rank):
    torch.manual_seed(0)
    built, x = LearnedPositionwiseDropout(128, rank), torch.randn(200, 128)
    assert built.gate(x).std().item() == pytest.approx(0.02 * 128**0.5, rel=0.15)
