import torch

from transformer_dropout.layers import LearnedSoftGate


def test_it_multiplies_by_the_probability_in_training_and_evaluation():
    torch.manual_seed(0)
    built, x = LearnedSoftGate(8, 2, shift=1.2), torch.randn(3, 5, 8)
    torch.nn.init.normal_(built.qkv.weight, std=0.6)
    keep = built.keep_probability(built.gate(x))
    assert ((keep > 0.1) & (keep < 0.9)).float().mean() > 0.3
    torch.testing.assert_close(built(x), x * keep)
    torch.testing.assert_close(built.take_penalty(), keep.square().mean() / 2)
    torch.testing.assert_close(built.eval()(x), x * keep)
