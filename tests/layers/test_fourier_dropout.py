import math

import pytest
import torch

from transformer_dropout.errors import InputError
from transformer_dropout.functional import cosine_keep_probability
from transformer_dropout.layers import LearnedDropout, LearnedFourierDropout
from transformer_dropout.layers.fourier_dropout import fourier_keep_probability

WIDTH, HEADS = 8, 2


def layer(terms, seed=0, **words):
    torch.manual_seed(seed)
    built = LearnedFourierDropout(WIDTH, HEADS, terms, shift=1.2, **words)
    torch.nn.init.normal_(built.qkv.weight, std=0.6)
    return built


def test_one_term_is_the_published_cosine_to_the_bit():
    gate, shift = torch.randn(50, WIDTH) * 3, torch.rand(WIDTH) * math.pi
    series = fourier_keep_probability(gate, shift[None], torch.ones(1, WIDTH))
    assert torch.equal(series, cosine_keep_probability(gate, shift))


def test_a_layer_of_one_term_takes_the_state_of_learned_dropout_and_masks_alike():
    published, built, x = LearnedDropout(WIDTH, HEADS, shift=1.2), layer(1), torch.randn(4, 6, WIDTH)
    published.load_state_dict(built.state_dict())
    outputs = []
    for each in (published, built):
        torch.manual_seed(3)
        outputs.append(each(x))
    assert torch.equal(*outputs)


def test_the_series_is_the_formula_term_by_term():
    gate, shifts = torch.randn(5, WIDTH), torch.randn(3, WIDTH)
    amplitudes = torch.rand(3, WIDTH)
    found = fourier_keep_probability(gate, shifts, amplitudes)
    for row in range(5):
        for c in range(WIDTH):
            terms = [
                amplitudes[k - 1, c].item() * math.cos(k * gate[row, c].item() + shifts[k - 1, c].item())
                for k in (1, 2, 3)
            ]
            assert found[row, c].item() == pytest.approx(0.5 * sum(terms) + 0.5, abs=1e-5)


def test_it_lies_between_zero_and_one_whatever_is_learned():
    built = layer(5)
    for parameter in (built.shift, built.amplitude):
        torch.nn.init.normal_(parameter, std=20)
    keep = built.keep_probability(torch.randn(4000, WIDTH) * 50)
    assert keep.min() >= -1e-6 and keep.max() <= 1 + 1e-6
    assert keep.min() < 0.05 and keep.max() > 0.95


def test_every_term_is_learned():
    built = layer(3)
    built(torch.randn(4, 6, WIDTH)).square().sum().backward()
    for parameter in (built.shift, built.amplitude):
        assert parameter.grad.view(3, WIDTH).abs().sum(dim=1).min() > 0


def test_it_starts_where_the_shift_says():
    built = LearnedFourierDropout(WIDTH, HEADS, 4, shift=math.pi / 3)
    torch.testing.assert_close(built.keep_probability(torch.zeros(WIDTH)), torch.full((WIDTH,), 0.75))


def test_a_series_without_terms_is_refused():
    with pytest.raises(InputError, match="1 or more"):
        LearnedFourierDropout(WIDTH, HEADS, 0)
