import pytest
import torch

from transformer_dropout.errors import InputError
from transformer_dropout.layers import LearnedLowRankDropout

WIDTH, RANK = 16, 3


def layer(**words):
    torch.manual_seed(0)
    built = LearnedLowRankDropout(WIDTH, RANK, shift=1.2, **words)
    for parameter in (built.qkv.weight, built.up.weight):
        torch.nn.init.normal_(parameter, std=0.6)
    return built


def test_the_gate_is_one_head_of_low_rank():
    built, x = layer(), torch.randn(2, 5, WIDTH)
    query, key, value = (x @ w.T for w in built.qkv.weight.split(RANK))
    hidden = torch.ones(5, 5).triu(1).bool()
    scores = (query @ key.transpose(1, 2) / RANK**0.5).masked_fill(hidden, -torch.inf)
    torch.testing.assert_close(built.gate(x), scores.softmax(-1) @ value @ built.up.weight.T)


def test_it_has_four_parameters_a_channel_and_rank():
    built = LearnedLowRankDropout(WIDTH)
    assert built.rank == WIDTH // 8
    assert sum(p.numel() for p in built.parameters()) == 4 * WIDTH * built.rank + WIDTH


def test_its_gate_starts_as_large_as_at_full_rank():
    torch.manual_seed(0)
    built, x = LearnedLowRankDropout(128, shift=1.2), torch.randn(1, 1, 128)
    value = (x @ torch.randn(128, 128) * 0.02).std()
    assert 0.5 < built.gate(x).std() / value < 2


def test_a_rank_below_one_is_refused():
    with pytest.raises(InputError, match="rank is 0"):
        LearnedLowRankDropout(WIDTH, 0)
