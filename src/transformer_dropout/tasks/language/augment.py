"""Random changes of training windows: neighbours that change places, and shorter windows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import InputError


@dataclass(frozen=True, kw_only=True)
class TextAugment:
    """How training windows are changed at random, anew in each step.

    Masked tokens are a layer, `TokenDropout` at the embedding, and replaced ones ``training.token_noise``.

    Args:
        swap: probability with which a token changes places with the next one, in inputs and targets alike.
        crop: at most this share of the windows is cut off, as much of all windows of a batch.

    Raises:
        InputError: for a share that is negative, a swap above 0.5, or a crop of 1.
    """

    swap: float = 0.0
    crop: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.swap <= 0.5:
            raise InputError(
                f"data.augment.swap is {self.swap}, but it is a probability from 0 to 0.5: the one of two "
                "neighbours takes the other with it."
            )
        if not 0 <= self.crop < 1:
            raise InputError(f"data.augment.crop is {self.crop}, but it is a share from 0 to below 1.")


def augmented(text: Tensor, config: TextAugment, generator: torch.Generator) -> Tensor:
    """Return windows of text with neighbours swapped and an end, or both, cut off.

    Shape:
        text: (windows, tokens), tokens at least 2; the result has as many windows, of 2 tokens at least.
    """
    windows, tokens = text.shape
    if config.swap:
        # Every second gap, from either the first or the second one on, so that no token moves twice.
        first = int(torch.randint(2, (), generator=generator))
        chosen = torch.rand(windows, tokens - 1, generator=generator) < 2 * config.swap
        chosen[:, 1 - first :: 2] = False
        places = torch.arange(tokens).repeat(windows, 1)
        places[:, :-1] += chosen.long()
        places[:, 1:] -= chosen.long()
        text = text.gather(1, places.to(text.device))
    if config.crop:
        least = max(2, round((1 - config.crop) * tokens))
        length = int(torch.randint(least, tokens + 1, (), generator=generator))
        start = int(torch.randint(tokens - length + 1, (), generator=generator))
        text = text[:, start : start + length]
    return text
