"""NEFTune: uniform noise on the input embeddings while training."""

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, did_you_mean
from ..kernels.compiled_hooks import NoticedHook
from ..schedules import Schedule, as_schedule
from ._noise_handle import NoiseHandle
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


class Neftune(NoiseHandle):
    """The handle that `neftune_` returns.

    Attributes:
        alpha: the strength, as last set.
    """

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)
        # What the running modules that take a mask were given, the innermost last.
        self._masks: list[Tensor | None] = []
        # The same number as alpha, for compiled graphs: one serves every value.
        self._alpha = torch.tensor(0.0)
        self.set_progress(0.0)

    def _set(self, value: float) -> None:
        check_not_negative("alpha", value)
        self.alpha = value
        self._alpha.fill_(value)

    def place(self, model: nn.Module, embedding: nn.Module) -> None:
        """Hook an embedding, the modules tied to it, and those around them that are given the mask."""
        weight = getattr(embedding, "weight", None)
        # Encoder and decoder may call modules of their own with its weight, and never the shared one itself.
        tied = {m for m in model.modules() if m is embedding or is_embedding_of(m, weight)}
        for module in model.modules():
            parameters = list(inspect.signature(module.forward).parameters)
            if "attention_mask" in parameters and any(part in tied for part in module.modules()):
                enter = partial(self._enter, parameters.index("attention_mask"))
                entered = module.register_forward_pre_hook(enter, with_kwargs=True)
                left = module.register_forward_hook(self._leave, always_call=True)
                self._hooks += [NoticedHook(module, entered), NoticedHook(module, left)]
        self._hooks += [NoticedHook(m, m.register_forward_hook(self._add_noise)) for m in tied]

    def _enter(self, index: int, module: nn.Module, arguments: tuple, keywords: dict) -> None:
        positional = arguments[index] if index < len(arguments) else None
        self._masks.append(keywords.get("attention_mask", positional))

    def _leave(self, module: nn.Module, arguments: tuple, output: Any) -> None:
        # Empty when another hook failed before ours entered.
        if self._masks:
            self._masks.pop()

    def _add_noise(self, module: nn.Module, arguments: tuple, output: Tensor) -> Tensor:
        if not module.training:
            return output
        mask = self._masks[-1] if self._masks else None
        # A mask in any other form says nothing about single tokens.
        fits = isinstance(mask, Tensor) and mask.shape == output.shape[:-1]
        alpha = self._alpha if torch.compiler.is_compiling() else self.alpha
        return neftune_noise(output, alpha, mask if fits else None)


def is_embedding_of(module: nn.Module, weight: Any) -> bool:
    """Say whether a module is an embedding with this very weight."""
    return isinstance(module, nn.Embedding) and module.weight is weight


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


def input_embedding(model: nn.Module, path: str | None) -> nn.Module:
    """Return the module at a path, or the one that embeds a model's tokens.

    Raises:
        InputError: when there is none, or more than one could be meant.
    """
    embeddings = {name: m for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    if path is not None:
        modules = dict(model.named_modules())
        if path not in modules:
            raise InputError(f"embedding is {path!r}, which is no module.{did_you_mean(path, embeddings)}")
        return modules[path]
    getter = getattr(model, "get_input_embeddings", None)
    found = getter() if callable(getter) else None
    if isinstance(found, nn.Module):
        return found
    if len(embeddings) != 1:
        raise InputError(
            "The input embedding is not clear; name it with embedding='PATH', one of: "
            f"{', '.join(embeddings) or 'none is an nn.Embedding'}."
        )
    return next(iter(embeddings.values()))
