"""Small models in the styles in which people write their own: the table of models measures them."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WORDS, WIDTH, HEADS, LENGTH, P = 48, 32, 4, 16, 0.1
MODELS = ("TeachingGPT", "RotaryGPT", "Tagger", "Translator", "Patches", "TiedLoop", "HeadList")


class FusedAttention(nn.Module):
    """Attention of one projection for query, key and value, through the fused kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.resid_dropout = nn.Dropout(P)
        self.dropout = P

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        query, key, value = (
            part.view(batch, length, HEADS, -1).transpose(1, 2) for part in self.c_attn(x).split(width, -1)
        )
        rate = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=rate)
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).reshape(batch, length, width)))


class TeachingBlock(nn.Module):
    """Norms before attention and MLP, dropout behind each."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2, self.attn = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), FusedAttention()
        self.mlp = nn.ModuleDict(
            {
                "c_fc": nn.Linear(WIDTH, 2 * WIDTH),
                "c_proj": nn.Linear(2 * WIDTH, WIDTH),
                "drop": nn.Dropout(P),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        hidden = F.gelu(self.mlp["c_fc"](self.ln_2(x)))
        return x + self.mlp["drop"](self.mlp["c_proj"](hidden))


class TeachingGPT(nn.Module):
    """A GPT in one dictionary of modules, its output layer tied to its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(WORDS, WIDTH),
                "wpe": nn.Embedding(LENGTH, WIDTH),
                "drop": nn.Dropout(P),
                "h": nn.ModuleList([TeachingBlock(), TeachingBlock()]),
                "ln_f": nn.LayerNorm(WIDTH),
            }
        )
        self.lm_head = nn.Linear(WIDTH, WORDS, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight

    def forward(self, ids: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.transformer["drop"](self.transformer["wte"](ids) + self.transformer["wpe"](positions))
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


class GroupedAttention(nn.Module):
    """Rotated queries and keys, fewer keys than queries, no dropout anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.size = WIDTH // HEADS
        self.qkv = nn.Linear(WIDTH, (HEADS + 4) * self.size, bias=False)
        self.proj = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        parts = self.qkv(x).unflatten(-1, (HEADS + 4, self.size)).transpose(1, 2)
        query, key, value = parts.split((HEADS, 2, 2), 1)
        query, key = rotated(query, cos, sin), rotated(key, cos, sin)
        key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=self.size**-0.5)
        return self.proj(y.transpose(1, 2).flatten(2))


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pairs of channels by an angle for each position."""
    one, other = x.chunk(2, -1)
    return x * cos + torch.cat((-other, one), -1) * sin


class RotaryBlock(nn.Module):
    """Attention and a gated MLP, one after the other or side by side."""

    def __init__(self, parallel: bool) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.attn, self.parallel = GroupedAttention(), parallel
        self.fc_1, self.fc_2 = nn.Linear(WIDTH, 64, bias=False), nn.Linear(WIDTH, 64, bias=False)
        self.proj = nn.Linear(64, WIDTH, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        attended = self.attn(self.norm_1(x), cos, sin)
        if self.parallel:
            return self.feed(self.norm_2(x)) + attended + x
        x = attended + x
        return self.feed(self.norm_2(x)) + x

    def feed(self, x: Tensor) -> Tensor:
        return self.proj(F.silu(self.fc_1(x)) * self.fc_2(x))


class RotaryGPT(nn.Module):
    """A GPT with rotated positions, whose first block is sequential and whose second is parallel."""

    def __init__(self) -> None:
        super().__init__()
        self.lm_head = nn.Linear(WIDTH, WORDS, bias=False)
        self.wte, self.ln_f = nn.Embedding(WORDS, WIDTH), nn.RMSNorm(WIDTH)
        self.h = nn.ModuleList([RotaryBlock(False), RotaryBlock(True)])
        angles = torch.arange(LENGTH)[:, None] / 10 ** torch.arange(WIDTH // HEADS // 2)
        self.register_buffer("cos", angles.repeat(1, 2).cos(), persistent=False)
        self.register_buffer("sin", angles.repeat(1, 2).sin(), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids) * math.sqrt(WIDTH)
        for block in self.h:
            x = block(x, self.cos[: ids.shape[1]], self.sin[: ids.shape[1]])
        return self.lm_head(self.ln_f(x))


class Tagger(nn.Module):
    """An encoder of torch's layers with a head for each token, tokens before samples."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.drop = nn.Embedding(WORDS, WIDTH), nn.Dropout(P)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 64, P)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.encoder(self.drop(self.embedding(ids)).transpose(0, 1))
        return self.head(x.transpose(0, 1))


class Translator(nn.Module):
    """Encoder and decoder of torch's layers around one embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.transformer = nn.Transformer(WIDTH, HEADS, 2, 2, 64, P, batch_first=True)
        self.generator = nn.Linear(WIDTH, WORDS)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        return self.generator(self.transformer(x, x.flip(1), tgt_mask=mask))


class Patches(nn.Module):
    """Mixes tokens and channels with perceptrons only; its tokens are embedded ids."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.tokens = nn.ModuleList([perceptron(12) for _ in range(2)])
        self.channels = nn.ModuleList([perceptron(WIDTH) for _ in range(2)])
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for tokens, channels in zip(self.tokens, self.channels, strict=True):
            x = x + tokens(x.transpose(1, 2)).transpose(1, 2)
            x = x + channels(x)
        return self.head(x.mean(1))


def perceptron(width: int) -> nn.Sequential:
    """Return two linear layers with dropout behind each."""
    return nn.Sequential(
        *(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(P)),
        *(nn.Linear(2 * width, width), nn.Dropout(P)),
    )


class TiedLoop(nn.Module):
    """One block that runs three times."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.block, self.head = (
            nn.Embedding(WORDS, WIDTH),
            TeachingBlock(),
            nn.Linear(WIDTH, WORDS),
        )

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids)
        for _ in range(3):
            x = self.block(x)
        return self.head(x)


class Head(nn.Module):
    """One head of attention, as lectures write it."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.query, self.value = (nn.Linear(WIDTH, WIDTH // HEADS, bias=False) for _ in range(3))
        self.register_buffer("tril", torch.tril(torch.ones(LENGTH, LENGTH)))
        self.dropout = nn.Dropout(P)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        scores = self.query(x) @ self.key(x).transpose(-2, -1) * x.shape[-1] ** -0.5
        scores = scores.masked_fill(self.tril[:length, :length] == 0, float("-inf"))
        return self.dropout(F.softmax(scores, -1)) @ self.value(x)


class HeadBlock(nn.Module):
    """Heads in a list, put together and projected."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList([Head() for _ in range(HEADS)])
        self.proj, self.dropout = nn.Linear(WIDTH, WIDTH), nn.Dropout(P)
        self.ffwd = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.ReLU(), nn.Linear(4 * WIDTH, WIDTH), nn.Dropout(P)
        )
        self.ln1, self.ln2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln1(x)
        x = x + self.dropout(self.proj(torch.cat([head(y) for head in self.heads], -1)))
        return x + self.ffwd(self.ln2(x))


class HeadList(nn.Module):
    """A GPT whose attention is a list of single heads."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(HeadBlock(), HeadBlock())
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids) + self.position(torch.arange(ids.shape[1]))
        return self.head(self.norm(self.blocks(x)))
