"""What the handles of noisy training share: a strength that a schedule may move, and a way out."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import InputError, did_you_mean
from ..kernels.compiled_hooks import NoticedHook
from ..schedules import Schedule
from .weights import value_at


class NoiseHandle:
    """Steers noise that hooks make in training, and takes it out again.

    Args:
        schedule: the strength over training.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self._hooks: list[NoticedHook] = []

    def set_progress(self, progress: float) -> None:
        """Move the strength to its value at ``progress``, a fraction in [0, 1]."""
        self._strength = value_at(self.schedule, progress)
        self._set(self._strength)

    def _set(self, value: float) -> None:
        raise NotImplementedError

    @contextmanager
    def off(self) -> Iterator[None]:
        """Let the model run without the noise inside the ``with`` block."""
        strength = self._strength
        self._set(0.0)
        try:
            yield
        finally:
            self._set(strength)

    def remove(self) -> None:
        """Take the noise out; the model then computes what it would without, to the bit.

        Raises:
            InputError: when it was removed already.
        """
        if not self._hooks:
            raise InputError("This was removed already; call the function that made the handle again.")
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


class EmbeddingNoiseHandle(NoiseHandle):
    """Steers noise at a model's input embedding, which knows the padding from the mask around it.

    Args:
        schedule: the strength over training.
    """

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)
        # What the running modules that take a mask were given, the innermost last.
        self._masks: list[Tensor | None] = []

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
        self._hooks += [NoticedHook(module, self._hook(module)) for module in tied]

    def _hook(self, embedding: nn.Module) -> RemovableHandle:
        raise NotImplementedError

    def _enter(self, index: int, module: nn.Module, arguments: tuple, keywords: dict) -> None:
        positional = arguments[index] if index < len(arguments) else None
        self._masks.append(keywords.get("attention_mask", positional))

    def _leave(self, module: nn.Module, arguments: tuple, output: Any) -> None:
        # Empty when another hook failed before ours entered.
        if self._masks:
            self._masks.pop()

    def _mask_of(self, tokens: tuple[int, ...]) -> Tensor | None:
        """Return the mask that says which of so many tokens are real; in any other form it says nothing."""
        mask = self._masks[-1] if self._masks else None
        return mask if isinstance(mask, Tensor) and mask.shape == tokens else None


def is_embedding_of(module: nn.Module, weight: Any) -> bool:
    """Return whether a module is an embedding with this very weight."""
    return isinstance(module, nn.Embedding) and module.weight is weight


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
