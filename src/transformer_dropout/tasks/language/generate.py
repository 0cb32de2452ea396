"""Text from a trained decoder."""

from collections.abc import Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from ...errors import InputError
from ...layers import RateLayer
from ...surgery.regularize import Regularization
from .cache import Cache
from .decoder import Attention, Decoder

Prompt = Sequence[int]
# Beyond these, logits that are divided by it leave what floats can tell apart.
COLDEST, HOTTEST = 1e-3, 1e6


@overload
def generate(
    model: Decoder,
    prompt: Prompt,
    tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    cache: bool = True,
    generator: torch.Generator | None = None,
) -> Iterator[int]: ...


@overload
def generate(
    model: Decoder,
    prompt: Sequence[Prompt],
    tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    cache: bool = True,
    generator: torch.Generator | None = None,
) -> Iterator[list[int]]: ...


@torch.no_grad()
def generate(
    model: Decoder,
    prompt: Sequence[Any],
    tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    cache: bool = True,
    generator: torch.Generator | None = None,
) -> Iterator[Any]:
    """Yield one token id after another, or for several prompts one list after another with an id for each.

    Each is drawn from ``softmax(logits / temperature)`` over the last ``context`` tokens, of which `top_k`
    and `top_p` leave the likeliest; at temperature 0 the likeliest is taken. The tokens are those that
    reading the whole window anew for each token gives, and those of each prompt alone, one after another.
    Until the window is full only the new tokens are read; then the positions of all move with each token.

    Masks that are drawn (``eval_mask="sample"``) are drawn once for each token while it is remembered, so
    there a cache gives other tokens.

    Args:
        model: in evaluation mode.
        prompt: at least one token id; or several such prompts, of any lengths.
        tokens: how many to generate.
        temperature: 0, or from 0.001 on.
        top_k: only so many of the likeliest tokens may be drawn; None for all.
        top_p: only the likeliest tokens may be drawn whose probabilities just reach this sum; None for all.
        cache: whether keys and values are kept, learned masks' own included.
        generator: the source of randomness; None for torch's own.

    Raises:
        InputError: for an empty prompt, settings outside their range, or prompts of several lengths where a
            layer drops attention weights.
    """
    check_settings(temperature, top_k, top_p)
    alone = len(prompt) == 0 or isinstance(prompt[0], int)
    rows = [list(row) for row in ([prompt] if alone else prompt)]
    if not all(rows):
        raise InputError("The prompt is empty; give at least one character with --prompt.")
    where = None if generator is None else generator.device
    # One prompt after another, so that each draws what it would draw alone.
    draws = [torch.rand(tokens, generator=generator, device=where) for _ in rows]
    uniform = torch.stack(draws).to(model.embedding.token.weight.device)
    reader = RowReader(model, rows, cache=cache)
    for step in range(tokens):
        chosen = choose(reader.logits(), uniform[:, step], temperature, top_k, top_p).tolist()
        for row, token in zip(rows, chosen, strict=True):
            row.append(token)
        yield chosen[0] if alone else chosen


class RowReader:
    """Reads rows of tokens that grow by one token between two readings.

    Args:
        model: in evaluation mode.
        rows: the token ids of each sequence, grown from outside.
        cache: whether to remember what was read.
    """

    def __init__(self, model: Decoder, rows: list[list[int]], *, cache: bool) -> None:
        self.model, self.rows = model, rows
        active = drops_attention_weights(model)
        if active and len(set(map(len, rows))) > 1:
            raise InputError(
                "A layer drops attention weights, which it cannot do beside padding; generate from one "
                "prompt at a time."
            )
        self.cache = Cache(model, remember=cache and not active)

    def logits(self) -> Tensor:
        """Return the logits after each row, read through its last ``context`` tokens.

        Shape:
            result: (rows, vocabulary), float32.
        """
        longest = max(map(len, self.rows))
        if 0 < self.cache.length == longest - 1 < self.cache.capacity:
            return self.cache.read(self._tensor([row[-1:] for row in self.rows])).float()
        # Also where the window is full: it moves, and with it the position of every token in it.
        self.cache.length = 0
        windows = [row[-self.cache.capacity :] for row in self.rows]
        longest = max(map(len, windows))
        padding = [longest - len(window) for window in windows]
        tokens = self._tensor([[0] * n + window for n, window in zip(padding, windows, strict=True)])
        real = None
        if any(padding):
            real = torch.arange(longest, device=tokens.device) >= self._tensor(padding)[:, None]
        return self.cache.read(tokens, real).float()

    def _tensor(self, numbers: list) -> Tensor:
        return torch.tensor(numbers, device=self.model.embedding.token.weight.device)


def drops_attention_weights(model: Decoder) -> bool:
    """Return whether a layer acts on attention weights now, as in Monte Carlo dropout."""
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    layers = [getattr(module, "attention_weights_dropout", None) for module in attentions]
    return any(layer is not None and (layer.training or not isinstance(layer, RateLayer)) for layer in layers)


def check_settings(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Refuse settings outside their range."""
    if temperature and not COLDEST <= temperature <= HOTTEST:
        raise InputError(
            f"temperature is {temperature}, but it is 0 (the likeliest token), or {COLDEST} to {HOTTEST}."
        )
    if top_k is not None and top_k < 1:
        raise InputError(f"top_k is {top_k}, but at least 1 token must be left; leave it out for all.")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top_p is {top_p}, but it is above 0 and at most 1; leave it out for all.")


def choose(
    logits: Tensor, uniform: Tensor, temperature: float, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Return one token id for each row of logits.

    Formula: the first token whose cumulative probability is above ``uniform``.

    Args:
        logits: of all tokens.
        uniform: from [0, 1), one for each row; the same number gives the same token.
        temperature: 0 for the likeliest token, whatever else.
        top_k: as `generate`; tokens as likely as the last one left stay too.
        top_p: as `generate`; likewise.

    Shape:
        logits: (rows, vocabulary); uniform, result: (rows,).

    Papers: Fan et al. 2018, "Hierarchical neural story generation" (top-k); Holtzman et al. 2020, "The
    curious case of neural text degeneration" (top-p).
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probabilities = logits.double().softmax(dim=-1)
    if top_p is not None:
        ordered = probabilities.sort(dim=-1, descending=True).values
        enough = ordered.cumsum(dim=-1) - ordered >= top_p
        least = ordered.masked_fill(enough, torch.inf).amin(dim=-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < least, 0)
    reached = probabilities.cumsum(dim=-1)
    return torch.searchsorted(reached, uniform.double()[:, None] * reached[:, -1:], right=True)[:, 0]


def sample_masks(regularization: Regularization) -> None:
    """Let the learned masks be drawn in evaluation too, which acts as a temperature of its own.

    Raises:
        InputError: when no layer of the recipe computes masks.
    """
    learned: list[Any] = [p.layer for p in regularization.placed if hasattr(p.layer, "eval_mask")]
    if not learned:
        raise InputError(
            "--sample-masks needs a run with learned masks, such as LearnedDropout's, and this run has none."
        )
    for layer in learned:
        layer.eval_mask = "sample"
