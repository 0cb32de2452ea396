"""The step of one token past the modules: the same numbers, with padding, biases and every kind of mask."""

import pytest
import torch

import transformer_dropout as td
from transformer_dropout.kernels._native import pure_pytorch
from transformer_dropout.tasks.language.cache import Cache
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig
from transformer_dropout.tasks.language.plain_decoding import PlainReader

TOKENS = torch.randint(0, 50, (3, 20), generator=torch.Generator().manual_seed(0))
REAL = torch.arange(6)[None] >= torch.tensor([0, 4, 2])[:, None]
AFTER_ATTENTION = ("attention_output", td.LearnedDropout)
RULES = {
    "none": [],
    "learned": [AFTER_ATTENTION, ("mlp_output", td.LearnedDropout)],
    "pre-computed": [AFTER_ATTENTION, ("mlp_output", td.PrecomputedLearnedDropout)],
}


def regularized(rules, bias):
    torch.manual_seed(0)
    model = Decoder(50, DecoderConfig(width=24, heads=2, blocks=3, context=20, bias=bias))
    td.regularize_(
        model, td.Recipe([td.Rule(select, layer, heads=3, shift=1.5, bias=bias) for select, layer in rules])
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
        if parameter.ndim == 1:
            parameter.data += 1.0
    return model.eval().double()


@torch.no_grad()
def read(model, real):
    """Return the logits of each step, and what read the single tokens."""
    cache = Cache(model)
    logits = [cache.read(TOKENS[:, :6], real)]
    logits += [cache.read(TOKENS[:, [n]]) for n in range(6, 12)]
    logits.append(cache.read(TOKENS[:, 12:15]))
    logits += [cache.read(TOKENS[:, [n]]) for n in range(15, 20)]
    return torch.stack(logits), type(cache.reader)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("real", [None, REAL], ids=["whole", "padded"])
@pytest.mark.parametrize("name", RULES)
def test_the_logits_are_those_of_the_modules(name, real, bias):
    model = regularized(RULES[name], bias)
    with pure_pytorch():
        ours, reader = read(model, real)
        # What a hook may do is not known, so the modules run.
        model.blocks[0].register_forward_hook(lambda *_: None)
        theirs, other = read(model, real)
    assert (reader, other) == (PlainReader, type(None))
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


def test_rows_with_padding_are_those_without():
    model = regularized(RULES["pre-computed"], bias=True)
    together, _ = read(model, REAL)
    for row, first in enumerate((0, 4, 2)):
        with torch.no_grad():
            alone = model(TOKENS[[row], first:])
        ends = [*range(5, 12), *range(14, 20)]
        torch.testing.assert_close(together[:, row], alone[0, [n - first for n in ends]])
