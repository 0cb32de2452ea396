"""A GPT and its training step as a short training script has them, written anew in the manner of nanoGPT.

Modules of PyTorch alone: dropout on the embedding, the attention weights, the attention's and the MLP's
output; gradients clipped at 1; AdamW with decay on matrices. Parameters have the names of `Decoder`, so that
one side's weights load into the other.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer_dropout.tasks.language.decoder import DecoderConfig


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, shape: DecoderConfig, p: float) -> None:
        super().__init__()
        self.heads, self.p = shape.heads, p
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=shape.bias)
        self.projection = nn.Linear(shape.width, shape.width, bias=shape.bias)
        self.drop = nn.Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        query, key, value = (
            part.view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(x).split(width, dim=2)
        )
        p = self.p if self.training else 0.0
        y = F.scaled_dot_product_attention(query, key, value, dropout_p=p, is_causal=True)
        return self.drop(self.projection(y.transpose(1, 2).contiguous().view(batch, tokens, width)))


class MLP(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, shape: DecoderConfig, p: float) -> None:
        super().__init__()
        self.expand = nn.Linear(shape.width, 4 * shape.width, bias=shape.bias)
        self.activation = nn.GELU()
        self.projection = nn.Linear(4 * shape.width, shape.width, bias=shape.bias)
        self.drop = nn.Dropout(p)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.projection(self.activation(self.expand(x))))


class Block(nn.Module):
    """Attention and MLP, each normalised before and added."""

    def __init__(self, shape: DecoderConfig, p: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(shape.width, bias=shape.bias)
        self.attention = Attention(shape, p)
        self.mlp_norm = nn.LayerNorm(shape.width, bias=shape.bias)
        self.mlp = MLP(shape, p)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Embedding(nn.Module):
    """The tables of tokens and positions."""

    def __init__(self, vocabulary: int, shape: DecoderConfig) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, shape.width)
        self.position = nn.Embedding(shape.context, shape.width)


class PlainGPT(nn.Module):
    """The whole model; its output layer shares the token embedding."""

    def __init__(self, vocabulary: int, shape: DecoderConfig, p: float) -> None:
        super().__init__()
        self.embedding = Embedding(vocabulary, shape)
        self.drop = nn.Dropout(p)
        self.blocks = nn.ModuleList(Block(shape, p) for _ in range(shape.blocks))
        self.norm = nn.LayerNorm(shape.width, bias=shape.bias)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1])
        x = self.drop(self.embedding.token(tokens) + self.embedding.position(places))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.embedding.token.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))


def decayed_groups(model: nn.Module) -> list[dict]:
    """Return the optimizer's groups: decay 0.1 on matrices, none on vectors."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def clipped_step(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Make one step with the gradient's norm at most 1."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
