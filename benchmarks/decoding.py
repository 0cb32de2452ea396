"""Tokens a second in the middle of a text, at context 200, for the published shape with learned masks.

The other side decodes as the published code does, without a cache: for each token it reads the whole window
anew, every linear layer and mask over all of it, with the output layer on the last position only. Its mask is
thresholded and passes through a float16 round trip; statistics are left out in its favour. Ours has read the
prompt before the clock starts, as a text that goes on has; the reference would gain nothing by that.
"""

import math
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from transformer_dropout.layers import LearnedDropout
from transformer_dropout.recipe import Recipe, Rule
from transformer_dropout.surgery.regularize import regularize_
from transformer_dropout.tasks.language.cache import Cache
from transformer_dropout.tasks.language.decoder import Attention, Block, Decoder, DecoderConfig

from .published_twin import rounded
from .rounds import timed_ratio
from .row import Budget, Measurement, Path, Row

SHAPE = DecoderConfig(width=144, heads=9, blocks=26, context=200)
VOCABULARY = 50_257
PROMPT = 184


def published_attention(attention: Attention | LearnedDropout, x: Tensor) -> Tensor:
    """Return what causal attention mixes, before any projection."""
    batch, tokens, width = x.shape
    query, key, value = (
        part.view(batch, tokens, attention.heads, width // attention.heads).transpose(1, 2)
        for part in F.linear(x, attention.qkv.weight).split(width, dim=2)
    )
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    return mixed.transpose(1, 2).contiguous().view(batch, tokens, width)


def published_block(block: Block, x: Tensor) -> Tensor:
    """Return what a block with a learned mask after its MLP gives."""
    attention, mlp = block.attention, block.mlp
    gate = cast(LearnedDropout, mlp.mlp_output_dropout)
    mixed = published_attention(attention, F.layer_norm(x, x.shape[-1:], block.attention_norm.weight))
    x = x + F.linear(mixed, attention.projection.weight)
    normed = F.layer_norm(x, x.shape[-1:], block.mlp_norm.weight)
    y = F.linear(F.gelu(F.linear(normed, mlp.expand.weight)), mlp.projection.weight)
    keep = 0.5 * torch.cos(published_attention(gate, y) + gate.shift) + 0.5
    return x + y * rounded(keep, torch.full_like(keep, 0.5))


def published_logits(model: Decoder, tokens: Tensor) -> Tensor:
    """Return the logits after the last of a window of tokens, all of it read anew.

    Shape:
        tokens: (1, tokens); result: (1, vocabulary).
    """
    embedding = model.embedding
    x = F.embedding(tokens, embedding.token.weight)
    x = x + F.embedding(torch.arange(tokens.shape[1]), embedding.position.weight)
    for block in model.blocks:
        x = published_block(cast(Block, block), x)
    return F.linear(F.layer_norm(x, x.shape[-1:], model.norm.weight)[:, -1], embedding.token.weight)


def masked_decoder() -> Decoder:
    """Return a decoder of the published shape whose masks keep about 60 % and whose text does not repeat."""
    model = Decoder(VOCABULARY, SHAPE)
    regularize_(model, Recipe([Rule("mlp_output", LearnedDropout, heads=SHAPE.heads, penalty=None)]))
    for name, parameter in model.blocks.named_parameters():
        if name.endswith("shift"):
            parameter.data.uniform_(0, math.pi / 1.2)
        elif parameter.ndim == 2:
            parameter.data.mul_(4)
    return model.eval().requires_grad_(False)


def recomputing(model: Decoder, prompt: Tensor, tokens: int) -> list[Tensor]:
    """Return the logits of each step of greedy decoding that reads everything anew."""
    steps, window = [], prompt
    for _ in range(tokens):
        steps.append(published_logits(model, window))
        window = torch.cat([window, steps[-1].argmax(dim=-1, keepdim=True)], dim=1)
    return steps


def remembering(cache: Cache, prompt: Tensor, tokens: int) -> list[Tensor]:
    """Return the logits of each step of greedy decoding when all of the prompt but its last token is read."""
    cache.length = prompt.shape[1] - 1
    steps, token = [], prompt[:, -1:]
    for _ in range(tokens):
        steps.append(cache.read(token))
        token = steps[-1].argmax(dim=-1, keepdim=True)
    return steps


def decoding_ratio(budget: Budget) -> Measurement:
    """Time greedy decoding by reading all anew and by remembering."""
    tokens = 4 if budget.quick else SHAPE.context - PROMPT
    with torch.no_grad():
        model, prompt = masked_decoder(), torch.randint(VOCABULARY, (1, PROMPT))
        cache = Cache(model)
        cache.read(prompt[:, :-1])
        theirs, ours = recomputing(model, prompt, tokens), remembering(cache, prompt, tokens)
        picked = [[int(logits.argmax()) for logits in steps] for steps in (theirs, ours)]
        assert picked[0] == picked[1], f"the tokens differ: {picked[0]} and {picked[1]}"
        error = max((a - b).abs().max().item() for a, b in zip(theirs, ours, strict=True))
        margin = min(-logits.topk(2).values.diff().item() for logits in theirs)
        assert error < margin / 2, f"logits differ by {error:.1e}, and the closest choice by {margin:.1e}"
        return timed_ratio(
            {
                "reference": partial(recomputing, model, prompt, tokens),
                "ours": partial(remembering, cache, prompt, tokens),
            },
            budget,
            gate=f"same {tokens} greedy tokens ({len(set(picked[0]))} different), logits within {error:.0e}, "
            f"closest choice {margin:.0e} apart",
            about={
                "tokens": tokens,
                "positions": [PROMPT, PROMPT + tokens],
                "shape": [SHAPE.width, SHAPE.heads, SHAPE.blocks, SHAPE.context, VOCABULARY],
                "dtype": "float32",
            },
        )


def row(path: Path, target: float, obstacle: str) -> Row:
    """Return the row of one path."""
    return Row(
        name="decode tokens/s at context 200: reference / ours",
        path=path,
        target=target,
        measure=decoding_ratio,
        obstacle=obstacle,
    )


ROWS = (
    row("pure", 5.0, "about 40 small operations per block, each a few microseconds of calls."),
    row("native", 17.0, "memory bandwidth: 61 MB of weights and 12 MB of keys and values for each token."),
)
