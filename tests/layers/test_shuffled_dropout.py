import pytest
import torch

from transformer_dropout.errors import InputError
from transformer_dropout.layers import LearnedDropout, LearnedShuffledDropout
from transformer_dropout.layers.shuffled_dropout import shuffled_order

WIDTH, HEADS = 8, 2


def layer(kind=LearnedShuffledDropout):
    torch.manual_seed(0)
    built = kind(WIDTH, HEADS, shift=1.2, eval_mask="mean")
    torch.nn.init.normal_(built.qkv.weight, std=0.6)
    return built.eval()


@pytest.mark.parametrize("batch", [2, 3, 7])
def test_no_sequence_is_masked_by_itself(batch):
    for seed in range(20):
        torch.manual_seed(seed)
        order = shuffled_order(batch, True, torch.device("cpu"))
        assert sorted(order.tolist()) == list(range(batch))
        assert (order != torch.arange(batch)).all()


def test_the_others_of_a_batch_are_all_drawn():
    drawn = {shuffled_order(4, True, torch.device("cpu"))[0].item() for _ in range(100)}
    assert drawn == {1, 2, 3}


def test_a_sequence_is_masked_by_what_the_gate_says_of_the_next_one():
    x = torch.randn(3, 5, WIDTH)
    masks = layer(LearnedDropout)(x) / x
    torch.testing.assert_close(layer()(x) / x, masks[[1, 2, 0]])


def test_padding_goes_along_with_its_sequence():
    x, padding = torch.randn(2, 5, WIDTH), torch.ones(2, 5, dtype=torch.bool)
    padding[0, :3] = False
    seen = layer()(x, padding_mask=padding)
    noisy = x.clone()
    noisy[0, :3] = 100.0
    # Row 1 is masked by row 0, whose padding no gate may see.
    torch.testing.assert_close(layer()(noisy, padding_mask=padding)[1, 3:], seen[1, 3:])


def test_a_batch_of_one_is_refused():
    with pytest.raises(InputError, match="batches of two or more"):
        layer()(torch.randn(1, 5, WIDTH))
