"""The reference decoder: a small GPT in one file, with no dropout of its own.

Tied embeddings, learned positions, pre-norm blocks, GELU, no biases by default. Regularizers come from
outside, through ``transformer_dropout.regularize_``.
"""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ... import functional
from ...errors import InputError
from ...kernels.attention import causal_attention
from ...kernels.cross_entropy import linear_cross_entropy
from ...kernels.heads import split_heads
from ...kernels.mlp import mlp

MOST_BLOCKS, MOST_PARAMETERS, LONGEST_CONTEXT = 1000, 1e12, 2**24


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The shape of a decoder.

    Attributes:
        width: channels of the residual stream.
        heads: attention heads; they divide the width.
        blocks: number of blocks.
        context: tokens in a window.
        bias: whether linear layers and norms have biases.
    """

    width: int = 96
    heads: int = 4
    blocks: int = 2
    context: int = 32
    bias: bool = False

    def __post_init__(self) -> None:
        for name in ("width", "heads", "blocks", "context"):
            if getattr(self, name) < 1:
                raise InputError(f"model.{name} is {getattr(self, name)}, but it must be at least 1.")
        # Before a block is built: many would take minutes even without data.
        size = self.blocks * (12 * self.width**2 + 4 * self.width) + self.context * self.width
        if self.blocks > MOST_BLOCKS or size > MOST_PARAMETERS:
            raise InputError(
                f"model.blocks {self.blocks} of model.width {self.width} and model.context {self.context} "
                f"make {size:.1e} parameters; at most {MOST_BLOCKS:,} blocks and {MOST_PARAMETERS:.0e} of "
                "them are built."
            )
        if self.context > LONGEST_CONTEXT:
            raise InputError(
                f"model.context is {self.context}, but at most {LONGEST_CONTEXT:,} tokens are read."
            )
        if self.width % self.heads:
            raise InputError(
                f"model.width {self.width} is not divisible by model.heads {self.heads}; "
                f"choose heads that divide {self.width}."
            )


class Embedding(nn.Module):
    """Token plus position embedding.

    Shape:
        tokens: (batch, tokens); positions: the same, None for 0, 1, 2 and so on.
    """

    def __init__(self, vocabulary_size: int, config: DecoderConfig) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary_size, config.width)
        self.position = nn.Embedding(config.context, config.width)

    def forward(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        if positions is not None:
            return self.token(tokens) + self.position(positions)
        return self.token(tokens) + self.position.weight[: tokens.shape[1]]


class Attention(nn.Module):
    """Causal multi-head self-attention.

    Shape:
        x: (batch, tokens, width); padding_mask: (batch, past and present tokens), true at real tokens.
    """

    @staticmethod
    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Mix the values; `regularize_` replaces this function where attention weights are dropped."""
        return causal_attention(query, key, value)

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.bias)
        self.projection = nn.Linear(config.width, config.width, bias=config.bias)

    def forward(
        self,
        x: Tensor,
        padding_mask: Tensor | None = None,
        past: functional.KeysAndValues | None = None,
    ) -> Tensor:
        if padding_mask is not None or past is not None:
            mixed = functional.self_attention(
                self.qkv(x), self.heads, causal=True, padding_mask=padding_mask, past=past
            )
            return self.projection(mixed)
        batch, tokens, width = x.shape
        mixed = self.attend(self, *split_heads(self.qkv(x), self.heads))
        return self.projection(mixed.transpose(1, 2).reshape(batch, tokens, width))


class MLP(nn.Module):
    """Two linear layers with a GELU between them, four times as wide inside."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.expand = nn.Linear(config.width, 4 * config.width, bias=config.bias)
        self.activation = nn.GELU()
        self.projection = nn.Linear(4 * config.width, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return mlp(x, self.expand, self.activation, self.projection)


class Block(nn.Module):
    """Attention and MLP, each normalised before and added to the residual stream."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width, bias=config.bias)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.width, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nn.Module):
    """A decoder-only transformer whose output layer shares the token embedding.

    Args:
        vocabulary_size: number of token ids.
        config: its shape.

    Shape:
        tokens, targets: (batch, tokens); logits: (batch, tokens, vocabulary).

    Paper: Radford et al. 2019, "Language models are unsupervised multitask learners".
    """

    def __init__(self, vocabulary_size: int, config: DecoderConfig) -> None:
        super().__init__()
        self.vocabulary_size, self.config = vocabulary_size, config
        self.embedding = Embedding(vocabulary_size, config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width, bias=config.bias)
        self.apply(initialise)
        for name, parameter in self.named_parameters():
            if name.endswith("projection.weight"):
                # Two additions to the residual stream a block: keep its variance from growing with depth.
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.blocks))

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the embedding of the tokens, under the name that models of transformers have for it."""
        return self.embedding.token

    def features(self, tokens: Tensor) -> Tensor:
        """Return what the output layer reads, of shape (batch, tokens, width)."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return the logits, or the mean cross-entropy in nats when targets are given."""
        features, weight = self.features(tokens), self.embedding.token.weight
        if targets is None:
            return F.linear(features, weight)
        return linear_cross_entropy(features, weight, targets)


def initialise(module: nn.Module) -> None:
    """Draw weights from N(0, 0.02^2) and set biases to 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
