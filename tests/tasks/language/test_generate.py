"""Tokens from a decoder: those of reading all anew, whatever is remembered and however many the prompts."""

import pytest
import torch

import transformer_dropout as td
from transformer_dropout.errors import InputError
from transformer_dropout.kernels._native import numba_installed, pure_pytorch
from transformer_dropout.runs.cost import sketch_of_splits
from transformer_dropout.runs.loop import build_model
from transformer_dropout.tasks.language.cache import Cache
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig
from transformer_dropout.tasks.language.generate import choose, generate, sample_masks

CONTEXT = 16
PROMPTS = [[3, 9], [1, 2, 3, 4, 5, 6, 7], [5]]
RULES = {
    "none": (),
    "dropout": [("mlp_output", td.Dropout), ("attention_weights", td.Dropout), ("block", td.DropPath)],
    "learned": [("mlp_output", td.LearnedDropout)],
    "learned twice": [("attention_output", td.LearnedDropout), ("mlp_output", td.LearnedDropout)],
    "learned elsewhere": [("embedding", td.LearnedDropout), ("mlp_hidden", td.LearnedDropout)],
    "pre-computed": [("mlp_output", td.PrecomputedLearnedDropout)],
    "both": [("attention_output", td.LearnedDropout), ("mlp_output", td.PrecomputedLearnedDropout)],
    "pre-computed twice": [
        ("attention_output", td.PrecomputedLearnedDropout),
        ("mlp_output", td.PrecomputedLearnedDropout),
    ],
}


def decoder(name="learned", **shape):
    """A decoder whose masks keep and drop, depend on all tokens before, and change the text."""
    torch.manual_seed(0)
    config = DecoderConfig(**({"width": 16, "heads": 4, "blocks": 2, "context": CONTEXT} | shape))
    model = Decoder(64, config)
    rules = []
    for select, layer in RULES[name]:
        rate = issubclass(layer, (td.Dropout, td.DropPath))
        rules.append(td.Rule(select, layer, p=0.5) if rate else td.Rule(select, layer, heads=2, shift=1.5))
    regularization = td.regularize_(model, td.Recipe(rules))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.4)
    return model.eval(), regularization


@pytest.fixture(params=["pure", "native"])
def path(request):
    """Run the test without native code, and with it where it is installed."""
    if request.param == "native":
        if not numba_installed():
            pytest.skip("numba is not installed")
        yield
        return
    with pure_pytorch():
        yield


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def recomputed(model, prompt, tokens):
    """Continue greedily by a plain forward over the window for each token."""
    sequence = list(prompt)
    for _ in range(tokens):
        sequence.append(int(model(torch.tensor([sequence[-CONTEXT:]]))[0, -1].argmax()))
    return sequence[len(prompt) :]


def by_prompt(steps):
    """Turn one list a step into one list a prompt."""
    return [list(row) for row in zip(*steps, strict=True)]


@pytest.mark.parametrize("name", RULES)
def test_greedy_tokens_are_those_of_recomputing_within_the_window_and_beyond(path, name):
    model, _ = decoder(name)
    tokens = 2 * CONTEXT
    expected = [recomputed(model, prompt, tokens) for prompt in PROMPTS]
    assert [list(generate(model, p, tokens, temperature=0)) for p in PROMPTS] == expected
    for cache in (True, False):
        assert by_prompt(generate(model, PROMPTS, tokens, temperature=0, cache=cache)) == expected
    # Else a model that ignores its input would pass.
    assert len({token for row in expected for token in row}) > 8


@pytest.mark.parametrize("name", ["none", "learned", "both"])
def test_drawn_tokens_are_the_same_together_alone_and_without_a_cache(path, name):
    model, _ = decoder(name)
    settings = {"tokens": 20, "temperature": 0.9, "top_k": 40, "top_p": 0.95}
    random = generator(1)
    alone = [list(generate(model, prompt, generator=random, **settings)) for prompt in PROMPTS]
    for cache in (True, False):
        together = generate(model, PROMPTS, generator=generator(1), cache=cache, **settings)
        assert by_prompt(together) == alone
    assert by_prompt(generate(model, PROMPTS, generator=generator(2), **settings)) != alone


@pytest.mark.parametrize("name", RULES)
def test_logits_are_those_of_recomputing(path, name):
    model, _ = decoder(name)
    cache, tokens = Cache(model), torch.randint(0, 64, (1, CONTEXT), generator=generator())
    with torch.no_grad():
        pieces = [cache.read(piece) for piece in tokens.split([3, 1, 4, 1, 1, 6], dim=1)]
        for logits, end in zip(pieces, (3, 4, 8, 9, 10, 16), strict=True):
            expected = model(tokens[:, :end])[:, -1]
            torch.testing.assert_close(logits, expected, atol=2e-5 * expected.abs().max(), rtol=0)


def test_only_the_last_window_matters():
    model, _ = decoder()
    long = list(range(40))
    assert list(generate(model, long, 5, temperature=0)) == list(
        generate(model, long[-CONTEXT:], 5, temperature=0)
    )


def test_what_is_remembered_is_the_generators_own(path):
    model, _ = decoder()
    hooks = [dict(module._forward_pre_hooks) for module in model.modules()]
    expected = [list(generate(model, prompt, 12, temperature=0)) for prompt in PROMPTS[:2]]
    plain = model(torch.tensor([[7, 8, 9]]))
    first, second = (generate(model, prompt, 12, temperature=0) for prompt in PROMPTS[:2])
    turns = [(next(first), next(second), model(torch.tensor([[7, 8, 9]]))) for _ in range(12)]
    assert [[turn[n] for turn in turns] for n in (0, 1)] == expected
    assert all(torch.equal(turn[2], plain) for turn in turns)
    assert [dict(module._forward_pre_hooks) for module in model.modules()] == hooks


def test_no_tokens_and_no_gradient():
    model, _ = decoder()
    assert list(generate(model, [1], 0)) == []
    assert list(generate(model, [[1], [2, 3]], 0)) == []
    list(generate(model, [1], 2))
    assert model.norm.weight.grad is None


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        ([], {}, "The prompt is empty"),
        ([[1], []], {}, "The prompt is empty"),
        ([1], {"temperature": -0.5}, "temperature is -0.5"),
        ([1], {"top_k": 0}, "top_k is 0, but at least 1 token must be left"),
        ([1], {"top_p": 0.0}, "top_p is 0.0, but it is above 0"),
        ([1], {"top_p": 1.5}, "top_p is 1.5"),
    ],
)
def test_what_cannot_be_is_refused(prompt, settings, message):
    with pytest.raises(InputError, match=message):
        next(generate(decoder()[0], prompt, 1, **settings))


def chosen(logits, **settings):
    """Count what 4,000 evenly spread numbers choose."""
    uniform = (torch.arange(4000) + 0.5) / 4000
    tokens = choose(logits.expand(4000, -1), uniform, **settings)
    return torch.bincount(tokens, minlength=logits.numel()) / 4000


def test_tokens_are_drawn_from_the_tempered_softmax():
    logits = torch.tensor([0.0, 1.0, 2.0, -torch.inf])
    torch.testing.assert_close(chosen(logits, temperature=0.5), (logits / 0.5).softmax(0), atol=5e-4, rtol=0)
    edges = choose(logits.expand(2, -1), torch.tensor([0.0, 1 - 2**-24]), 0.5)
    assert edges.tolist() == [0, 2]


def test_top_k_and_top_p_leave_the_likeliest():
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()
    for settings, expected in (
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_k": 9}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_p": 0.6}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.75}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"top_p": 1.0}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_p": 0.01}, [0, 1, 0, 0]),
        # Of the two left by k, the first alone has 4/7.
        ({"top_k": 2, "top_p": 0.5}, [0, 1, 0, 0]),
    ):
        measured = chosen(logits, temperature=1, **settings)
        assert measured.tolist() == pytest.approx(expected, abs=5e-4)


def test_sampled_masks_make_greedy_text_random():
    model, regularization = decoder()
    sample_masks(regularization)
    texts = set()
    for seed in range(5):
        torch.manual_seed(seed)
        texts.add(tuple(generate(model, [3], 20, temperature=0)))
    assert len(texts) > 1


def test_a_mask_is_drawn_once_while_its_token_is_remembered():
    model, regularization = decoder()
    sample_masks(regularization)
    masks = []
    for placed in regularization.placed:
        placed.layer.observer = lambda keep, mask: masks.append(mask.shape[1])
    for cache, expected in ((True, [3, 1, 1]), (False, [3, 4, 5])):
        masks.clear()
        list(generate(model, [1, 2, 3], 3, cache=cache))
        assert masks == [tokens for tokens in expected for _ in regularization.placed]


def test_dropped_attention_weights_are_not_remembered():
    model, _ = decoder("dropout")
    model.train()
    texts = {tuple(generate(model, [3], 20, temperature=0)) for _ in range(3)}
    assert len(texts) > 1
    assert len(by_prompt(generate(model, [[3], [4]], 5))) == 2
    with pytest.raises(InputError, match="beside padding; generate from one prompt at a time"):
        next(generate(model, [[3], [4, 5]], 5))


def test_sampling_masks_needs_masks(tiny, learned):
    _, regularization = build_model(config := tiny(recipe=learned[1:]), sketch_of_splits(config))
    with pytest.raises(InputError, match="--sample-masks needs a run with learned masks"):
        sample_masks(regularization)
