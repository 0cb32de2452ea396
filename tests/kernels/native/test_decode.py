"""The native step of a decoder: its mathematics, and what it leaves unread."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import transformer_dropout as td
from transformer_dropout.kernels._native import pure_pytorch
from transformer_dropout.tasks.language.cache import Cache
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig
from transformer_dropout.tasks.language.native_decoding import NativeReader, reads_natively
from transformer_dropout.tasks.language.plain_decoding import PlainReader

pytest.importorskip("numba")

from transformer_dropout.kernels.native import decode

TOKENS = torch.randint(0, 50, (1, 40), generator=torch.Generator().manual_seed(0))


def regularized(*rules, **shape):
    """A decoder whose masks keep and drop about half."""
    torch.manual_seed(0)
    config = DecoderConfig(**({"width": 24, "heads": 2, "blocks": 3, "context": 40} | shape))
    model = Decoder(50, config)
    td.regularize_(model, td.Recipe([td.Rule(select, layer, **words) for select, layer, words in rules]))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
        if parameter.ndim == 1:
            parameter.data += 1.0
    return model.eval()


LEARNED = ("mlp_output", td.LearnedDropout, {"heads": 3, "shift": 1.5, "bias": True})
AFTER_ATTENTION = ("attention_output", td.LearnedDropout, {"heads": 4})
EARLY = ("mlp_output", td.PrecomputedLearnedDropout, {"heads": 3})
DROPOUT = ("block", td.DropPath, {"p": 0.3})


@torch.no_grad()
def read(model, tokens=TOKENS, prompt=2):
    """Return the logits after each token beyond the prompt, and whether native code gave them."""
    cache = Cache(model)
    cache.read(tokens[:, :prompt])
    logits = [cache.read(tokens[:, [n]]) for n in range(prompt, tokens.shape[1])]
    return torch.cat(logits), isinstance(cache.reader, NativeReader)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "rules",
    [[], [LEARNED], [EARLY], [AFTER_ATTENTION, EARLY], [AFTER_ATTENTION, LEARNED, DROPOUT]],
    ids=lambda rules: "+".join(f"{layer.__name__}" for _, layer, _ in rules) or "none",
)
def test_the_logits_are_those_of_a_plain_forward(rules, bias):
    model = regularized(*rules, bias=bias)
    logits, natively = read(model)
    with torch.no_grad():
        expected = model(TOKENS)[0, 2:]
    assert natively
    torch.testing.assert_close(logits, expected, atol=2e-6 * expected.abs().max().item(), rtol=0)


def test_double_precision_agrees_as_well_as_pytorch_does():
    model = regularized(LEARNED)
    ours, _ = read(model)
    with pure_pytorch():
        pure, natively = read(model)
    with torch.no_grad():
        exact = model.double()(TOKENS)[0, 2:]
    assert not natively
    error, usual = ((logits.double() - exact).abs().max() for logits in (ours, pure))
    assert error < 3 * usual


def test_weights_of_rows_that_an_early_mask_drops_are_not_read():
    model = regularized(EARLY, blocks=1, bias=True)
    mlp, kept = model.blocks[0].mlp, []
    mlp.mlp_output_dropout.observer = lambda keep, mask: kept.append(mask[0, -1].bool())
    with torch.no_grad():
        expected = model(TOKENS[:, :3])[:, -1]
    mlp.mlp_output_dropout.observer = None
    assert 0 < kept[0].sum() < 24
    cache = Cache(model)
    with torch.no_grad():
        cache.read(TOKENS[:, :2])
        mlp.projection.weight[~kept[0]] = torch.nan
        mlp.projection.bias[~kept[0]] = torch.nan
        torch.testing.assert_close(cache.read(TOKENS[:, 2:3]), expected, atol=1e-4, rtol=0)
        assert model(TOKENS[:, :3]).isnan().any()


def test_what_it_cannot_read_is_left_to_pytorch():
    model = regularized(LEARNED)
    assert reads_natively(model)
    with pure_pytorch():
        assert not reads_natively(model)
    model.blocks[0].attention.qkv.weight = torch.nn.Parameter(torch.zeros(24, 72).t())
    assert not reads_natively(model)
    assert not reads_natively(regularized(LEARNED).bfloat16())
    assert not reads_natively(regularized(LEARNED).to("meta"))


def test_several_rows_and_padding_are_left_to_pytorch():
    model = regularized(LEARNED)
    with torch.no_grad():
        for tokens, real in ((TOKENS[:, :6].view(2, 3), None), (TOKENS[:, :3], torch.arange(3)[None] > 0)):
            cache = Cache(model)
            cache.read(tokens, real)
            cache.read(tokens[:, -1:])
            assert isinstance(cache.reader, PlainReader)


def test_exponentials():
    x = np.concatenate([np.linspace(-80, 0, 1001), [-1e9, -np.inf]]).astype(np.float32)
    y = x.copy()
    decode.exponentials(y, np.empty(y.size, np.int32))
    np.testing.assert_allclose(y[:-2], np.exp(x[:-2].astype(np.float64)), rtol=4e-7)
    assert (y[-2:] < 1e-37).all()


def test_gelu():
    x = np.concatenate([np.linspace(-8, 8, 4001), [-1e4, 1e4, 0.0]]).astype(np.float32)
    y = x.copy()
    decode.gelu(y, np.empty_like(y), np.empty(y.size, np.int32))
    expected = F.gelu(torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(y, expected, rtol=4e-7, atol=4e-7)
    # Where 1 + erf cancels, the relative error stays small too.
    tail = (x > -5) & (x < -3)
    np.testing.assert_allclose(y[tail], expected[tail], rtol=4e-6)
    assert math.isclose(y[-2], 1e4)
