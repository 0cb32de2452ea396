"""Tokens from a decoder: greedy, drawn, and with drawn masks."""

import pytest
import torch

from transformer_dropout.errors import InputError
from transformer_dropout.training.generate import generate, next_token, sample_masks
from transformer_dropout.training.loop import build_model


@pytest.fixture
def built(tiny, learned):
    model, regularization = build_model(tiny(recipe=learned), 64)
    with torch.no_grad():
        model.embedding.token.weight.mul_(5)
        for matrix in model.blocks.parameters():
            matrix.mul_(20 if matrix.ndim == 2 else 1)
    return model.eval(), regularization


def generator(seed):
    return torch.Generator().manual_seed(seed)


def test_greedy_takes_the_likeliest_token_each_time(built):
    model, _ = built
    sequence = [3, 9]
    for token in generate(model, [3, 9], 20, temperature=0):
        with torch.no_grad():
            assert token == int(model(torch.tensor([sequence[-16:]]))[0, -1].argmax())
        sequence.append(token)
    assert len(sequence) == 22


def test_drawing_repeats_under_a_seed_and_differs_under_another(built):
    model, _ = built
    first, again, other = (list(generate(model, [3], 30, generator=generator(s))) for s in (0, 0, 1))
    assert first == again != other


def test_tokens_are_drawn_from_the_tempered_softmax():
    logits = torch.tensor([0.0, 1.0, 2.0])
    draws = [next_token(logits, 0.5, random) for random in [generator(0)] for _ in range(4000)]
    expected = (logits / 0.5).softmax(0)
    measured = torch.bincount(torch.tensor(draws), minlength=3) / 4000
    assert measured.allclose(expected, atol=0.03)


def test_only_the_last_window_matters(built):
    model, _ = built
    long = list(range(40))
    assert list(generate(model, long, 5, temperature=0)) == list(
        generate(model, long[-16:], 5, temperature=0)
    )


def test_no_tokens_and_no_gradient(built):
    model, _ = built
    assert list(generate(model, [1], 0)) == []
    list(generate(model, [1], 2))
    assert model.norm.weight.grad is None


@pytest.mark.parametrize(("prompt", "temperature"), [([], 1.0), ([1], -0.5)])
def test_an_empty_prompt_and_a_negative_temperature_are_refused(built, prompt, temperature):
    with pytest.raises(InputError):
        next(generate(built[0], prompt, 1, temperature=temperature))


def test_sampled_masks_make_greedy_text_random(built):
    model, regularization = built
    sample_masks(regularization)
    texts = set()
    for seed in range(5):
        torch.manual_seed(seed)
        texts.add(tuple(generate(model, [3], 20, temperature=0)))
    assert len(texts) > 1


def test_sampling_masks_needs_masks(tiny, learned):
    _, regularization = build_model(tiny(recipe=learned[1:]), 64)
    with pytest.raises(InputError, match="--sample-masks needs a run with LearnedDropout"):
        sample_masks(regularization)
