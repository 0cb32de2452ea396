"""Token noise: in training a share of the input tokens is replaced by random ones of the batch."""

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import InputError
from ..schedules import Schedule, as_schedule
from ._noise_handle import EmbeddingNoiseHandle, input_embedding


def token_noise(tokens: Tensor, p: float | Tensor, real: Tensor | None = None) -> Tensor:
    """Replace each token with probability ``p`` by one drawn from all tokens of the batch.

    Formula: ``y_i = x_j`` with probability p, j drawn uniformly from the batch's real tokens, else ``x_i``.
    The tokens that come in are as frequent as they are in the text; one in so many is the token itself.

    Args:
        tokens: ids.
        p: probability of replacing a token.
        real: true at tokens that are replaced and drawn; None for all.

    Shape:
        tokens, real: any, and the result.

    Paper: Xie et al. 2017, "Data noising as smoothing in neural network language models", unigram noising.
    """
    if real is None:
        real = torch.ones_like(tokens, dtype=torch.bool)
    real = real.bool()
    # The places of real tokens, each as likely, without a shape that depends on their number.
    chance = torch.rand(tokens.shape, device=tokens.device)
    places = real.flatten().to(torch.int64).cumsum(0)
    count = places[-1]
    drawn = (torch.rand(tokens.shape, device=tokens.device, dtype=torch.float64) * count).long() + 1
    others = tokens.flatten()[torch.searchsorted(places, drawn.flatten()).clamp_max(tokens.numel() - 1)]
    return torch.where(real & (chance < p), others.view_as(tokens), tokens)


class TokenNoise(EmbeddingNoiseHandle):
    """The handle that `token_noise_` returns.

    Attributes:
        p: the probability of replacing a token, as last set.
    """

    def __init__(self, schedule: Schedule, keep: Collection[int]) -> None:
        super().__init__(schedule)
        self.keep = sorted(keep)
        # The same number as p, for compiled graphs: one serves every value.
        self._rate = torch.tensor(0.0)
        self.set_progress(0.0)

    def _set(self, value: float) -> None:
        if not 0 <= value <= 1:
            raise InputError(f"p is {value}, but a probability of replacing lies between 0 and 1.")
        self.p = value
        self._rate.fill_(value)

    def _hook(self, embedding: nn.Module) -> RemovableHandle:
        return embedding.register_forward_pre_hook(self._replace, with_kwargs=True)

    def _replace(self, module: nn.Module, arguments: tuple, keywords: dict) -> tuple[tuple, dict] | None:
        # A compiled graph that looked at the number would be made again for each.
        if not module.training or (not torch.compiler.is_compiling() and self.p == 0):
            return None
        name = None if arguments else next(iter(keywords))
        tokens = arguments[0] if name is None else keywords[name]
        if tokens.is_floating_point():
            raise InputError(
                f"token_noise_ replaces token ids, and {type(module).__name__} is given numbers of type "
                f"{tokens.dtype}; name the module that is given ids with embedding='PATH'."
            )
        real = self._mask_of(tokens.shape)
        real = torch.ones_like(tokens, dtype=torch.bool) if real is None else real.bool()
        for token in self.keep:
            real = real & (tokens != token)
        changed = token_noise(tokens, self._rate if torch.compiler.is_compiling() else self.p, real)
        if name is None:
            return (changed, *arguments[1:]), keywords
        return (), keywords | {name: changed}


def token_noise_(
    model: nn.Module, p: float | Schedule, *, embedding: str | None = None, keep: Collection[int] = ()
) -> TokenNoise:
    """Let a model train with a share of its input tokens replaced by others of the batch; see `token_noise`.

    In training only, and in place. Targets stay as they are. Padding, known from the ``attention_mask`` of
    shape (batch, tokens) that the model around the embedding is given, is neither replaced nor drawn.

    Args:
        model: the model; ``state_dict`` stays as it is.
        p: probability of replacing a token; a schedule moves with ``set_progress``.
        embedding: path of the embedding of the tokens; None for what ``model.get_input_embeddings()``
            returns, or else the only ``nn.Embedding``.
        keep: ids that are neither replaced nor drawn, such as ``tokenizer.all_special_ids``.

    Raises:
        InputError: for a p outside [0, 1], or when the embedding is not there or not clear.

    Paper: Xie et al. 2017, "Data noising as smoothing in neural network language models".
    """
    handle = TokenNoise(as_schedule(p), keep)
    handle.place(model, input_embedding(model, embedding))
    return handle
