"""The sides of every comparison of whole training steps: the published way, and ours."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer_dropout.layers import LearnedDropout
from transformer_dropout.recipe import Recipe, Rule
from transformer_dropout.surgery.regularize import regularize_
from transformer_dropout.surgery.speed_up import speed_up_
from transformer_dropout.tasks.language.decoder import MLP, Attention, Decoder, DecoderConfig

from .published_twin import PublishedTwin

PENALTY = 0.1


class PlainDecoder(Decoder):
    """The decoder with its logits written out."""

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        logits = F.linear(self.features(tokens), self.embedding.token.weight)
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


class PlainAttention(Attention):
    """Attention through PyTorch's own function, which drops weights where a rate is given."""

    p = 0.0

    @staticmethod
    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        p: float = cast(PlainAttention, module).p if module.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=p)


class PlainMLP(MLP):
    """Two linear layers with a GELU between them, each on its own."""

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(self.activation(self.expand(x)))


PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    Decoder: PlainDecoder,
    Attention: PlainAttention,
    MLP: PlainMLP,
}


def as_published(model: Decoder) -> None:
    """Make a decoder compute as plain modules do, in place."""
    for module in model.modules():
        module.__class__ = PLAIN.get(type(module), type(module))


@dataclass(kw_only=True)
class Side:
    """A model with its optimizer, ready to make training steps.

    Attributes:
        model: called with tokens and targets.
        layers: those with a penalty.
        tokens: of one batch, one more than a window has.
        optimizer: AdamW, fused or not.
        autocast: whether the forward runs in bfloat16.
    """

    model: Decoder
    layers: tuple[LearnedDropout, ...]
    tokens: Tensor
    optimizer: torch.optim.Optimizer
    autocast: bool = False

    def loss(self) -> Tensor:
        """Return the loss of one forward, penalty included in training mode."""
        with torch.autocast(self.tokens.device.type, torch.bfloat16, enabled=self.autocast):
            loss = self.model(self.tokens[:, :-1], self.tokens[:, 1:])
        if self.layers and self.model.training:
            loss = loss + PENALTY * torch.stack([layer.take_penalty() for layer in self.layers]).mean()
        return loss

    def step(self) -> None:
        """Make one optimizer step."""
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gradients(self) -> dict[str, Tensor]:
        """Return the gradients of an evaluation forward, whose masks nobody draws, and forget them."""
        self.model.eval()
        self.loss().backward()
        found = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        self.optimizer.zero_grad()
        self.model.train()
        return found


def built_decoder(vocabulary: int, shape: DecoderConfig) -> Decoder:
    """Return a decoder whose weights depend on its shape alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Decoder(vocabulary, shape)


def random_tokens(vocabulary: int, batch: int, shape: DecoderConfig) -> Tensor:
    """Return windows of random tokens, each with the token behind it."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocabulary, (batch, shape.context + 1), generator=generator)


def published_side(
    vocabulary: int, shape: DecoderConfig, batch: int, *, learned: bool, autocast: bool = False
) -> Side:
    """Build the published way: plain modules, logits written out, eager, the default AdamW."""
    model = built_decoder(vocabulary, shape)
    rules = [learned_rule(PublishedTwin, shape)] if learned else []
    made = side(model, rules, vocabulary, batch, fused=False, autocast=autocast)
    as_published(made.model)
    return made


def our_side(
    vocabulary: int, shape: DecoderConfig, batch: int, rules: Iterable[Rule], *, autocast: bool = False
) -> Side:
    """Build ours, as a run does."""
    made = side(built_decoder(vocabulary, shape), rules, vocabulary, batch, fused=True, autocast=autocast)
    speed_up_(made.model)
    return made


def side(
    model: Decoder, rules: Iterable[Rule], vocabulary: int, batch: int, *, fused: bool, autocast: bool
) -> Side:
    """Regularize a model and give it its optimizer and its tokens."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        regularize_(model, Recipe(list(rules)))
    return Side(
        model=model,
        layers=tuple(module for module in model.modules() if isinstance(module, LearnedDropout)),
        tokens=random_tokens(vocabulary, batch, model.config),
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-4, fused=fused),
        autocast=autocast,
    )


def learned_rule(layer: type[LearnedDropout], shape: DecoderConfig) -> Rule:
    """Return the rule of the published configs: a learned mask on the output of each MLP."""
    return Rule("mlp_output", layer, heads=shape.heads, weight=PENALTY)


def check_same(ours: Side, reference: Side, *, loss: float, gradient: float) -> str:
    """Compare the loss and the gradients of both sides in evaluation; return what was found.

    The parameters of the mask itself are left out of the gradients: the published float16 round trip loses
    most of theirs.

    Args:
        ours, reference: with the same weights.
        loss: the largest relative difference that is allowed.
        gradient: the largest one of all gradients together, as norms.
    """
    for one in (ours, reference):
        one.model.eval()
    with torch.no_grad():
        losses = [one.loss().item() for one in (ours, reference)]
    off = abs(losses[0] / losses[1] - 1)
    assert off < loss, f"the losses are {losses[0]} and {losses[1]}"
    found, expected = ours.gradients(), reference.gradients()
    assert found.keys() == expected.keys()
    chosen = [name for name in expected if "_dropout." not in name]
    apart = torch.stack([(found[name] - expected[name]).norm() for name in chosen]).norm()
    error = (apart / torch.stack([expected[name].norm() for name in chosen]).norm()).item()
    assert error < gradient, f"the gradients differ by {error:.1e}"
    return f"losses equal within {off:.0e}, gradients within {error:.0e}"
