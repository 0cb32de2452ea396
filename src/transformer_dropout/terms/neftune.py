"""NEFTune: uniform noise on the input embeddings while training."""

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..schedules import Schedule, as_schedule
from ._noise_handle import EmbeddingNoiseHandle, input_embedding
from .weights import check_not_negative


def neftune_noise(embeddings: Tensor, alpha: float | Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Add uniform noise whose size falls with a text's length, and none to padding.

    Formula: ``x + alpha / sqrt(L d) * u``, ``u ~ U(-1, 1)`` for each element, with L the text's tokens and d
    the width, so that the noise of a text has the expected norm ``alpha / sqrt(3)``.

    Args:
        embeddings: the embedded tokens.
        alpha: strength; 5, 10 and 15 in the paper.
        attention_mask: 1 or true where a token is real; None when all are.

    Shape:
        embeddings: (batch, tokens, width); attention_mask: (batch, tokens).

    Paper: Jain et al. 2024, "NEFTune: noisy embeddings improve instruction finetuning".
    """
    tokens, width = embeddings.shape[-2:]
    noise = torch.rand_like(embeddings, dtype=torch.float32) * 2 - 1
    if attention_mask is None:
        return embeddings + (noise * (alpha / (tokens * width) ** 0.5)).to(embeddings.dtype)
    real = attention_mask.to(noise.dtype)[..., None]
    length = real.sum(dim=-2, keepdim=True).clamp_min(1)
    return embeddings + (noise * real * (alpha / (length * width).sqrt())).to(embeddings.dtype)


class Neftune(EmbeddingNoiseHandle):
    """The handle that `neftune_` returns.

    Attributes:
        alpha: the strength, as last set.
    """

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)
        # The same number as alpha, for compiled graphs: one serves every value.
        self._alpha = torch.tensor(0.0)
        self.set_progress(0.0)

    def _set(self, value: float) -> None:
        check_not_negative("alpha", value)
        self.alpha = value
        self._alpha.fill_(value)

    def _hook(self, embedding: nn.Module) -> RemovableHandle:
        return embedding.register_forward_hook(self._add_noise)

    def _add_noise(self, module: nn.Module, arguments: tuple, output: Tensor) -> Tensor:
        if not module.training:
            return output
        alpha = self._alpha if torch.compiler.is_compiling() else self.alpha
        return neftune_noise(output, alpha, self._mask_of(output.shape[:-1]))


def neftune_(model: nn.Module, alpha: float | Schedule, *, embedding: str | None = None) -> Neftune:
    """Let a model train with noise on its input embeddings, in place; see `neftune_noise`.

    Training only. Padding is known from the ``attention_mask`` of shape (batch, tokens) that the model around
    the embedding is given; without one all tokens count. Inputs passed as ``inputs_embeds`` get no noise.

    Args:
        model: the model; ``state_dict`` stays as it is.
        alpha: strength; a schedule moves with ``set_progress``.
        embedding: path of the embedding; None for what ``model.get_input_embeddings()`` returns, or else the
            only ``nn.Embedding``.

    Raises:
        InputError: for a negative alpha, or when the embedding is not there or not clear.

    Paper: Jain et al. 2024, "NEFTune: noisy embeddings improve instruction finetuning".
    """
    handle = Neftune(as_schedule(alpha))
    handle.place(model, input_embedding(model, embedding))
    return handle
