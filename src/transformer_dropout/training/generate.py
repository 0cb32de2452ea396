"""Text from a trained decoder."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import InputError
from ..layers import LearnedDropout
from ..regularize import Regularization
from .decoder import Decoder


@torch.no_grad()
def generate(
    model: Decoder,
    prompt: list[int],
    tokens: int,
    *,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """Yield one token id after another.

    Each is drawn from ``softmax(logits / temperature)`` over the last ``context`` tokens; at temperature 0
    the likeliest is taken.

    Args:
        model: in evaluation mode.
        prompt: at least one token id.
        tokens: how many to generate.
        temperature: 0 or more.
        generator: the source of randomness; None for torch's own.

    Raises:
        InputError: for an empty prompt or a negative temperature.
    """
    if not prompt:
        raise InputError("The prompt is empty; give at least one character with --prompt.")
    if temperature < 0:
        raise InputError(f"temperature is {temperature}, but it is 0 (the likeliest token) or more.")
    sequence = list(prompt)
    device = next(model.parameters()).device
    for _ in range(tokens):
        window = torch.tensor([sequence[-model.config.context :]], device=device)
        sequence.append(next_token(model(window)[0, -1].float(), temperature, generator))
        yield sequence[-1]


def next_token(logits: Tensor, temperature: float, generator: torch.Generator | None) -> int:
    """Return one token id drawn from the logits."""
    if temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator))


def sample_masks(regularization: Regularization) -> None:
    """Let the learned masks be drawn in evaluation too, which acts as a temperature of its own.

    Raises:
        InputError: when no layer of the recipe computes masks.
    """
    learned = [p.layer for p in regularization.placed if isinstance(p.layer, LearnedDropout)]
    if not learned:
        raise InputError("--sample-masks needs a run with LearnedDropout, and this run has none.")
    for layer in learned:
        layer.eval_mask = "sample"
