"""Which module is running: hooks that keep a stack, and modes that live as long as it is not empty."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from ...layers import DropoutLayer

DROPOUT_NAME = re.compile(r"drop|stochasticdepth", re.IGNORECASE)


def drops(module: nn.Module) -> bool:
    """Return whether a module is a layer of this package, or a dropout by the name of its class."""
    return isinstance(module, DropoutLayer) or DROPOUT_NAME.search(type(module).__name__) is not None


def is_dropout_module(module: nn.Module) -> bool:
    """Return whether a module is a dropout and has no parts."""
    return drops(module) and not any(module.children())


class ModuleStack:
    """A context in which ``path`` is the path of the innermost module that runs.

    Torch modes are entered with the outermost forward and left with it, rather than for the whole
    ``with`` block: they see nothing but this model, and they also see what activation checkpointing
    recomputes inside a backward pass, where outer modes are switched off.

    Args:
        model: its submodules are watched.
        modes: context managers that are entered while a module of the model runs.
        entered: called with ``(path, inputs)`` before each forward; what it returns goes to ``left``.
        left: called with ``(path, module, inputs, output, what entered returned)`` after each forward that
            returned something.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        modes: Sequence[AbstractContextManager] = (),
        entered: Callable[[str, tuple], Any] | None = None,
        left: Callable[[str, nn.Module, tuple, Any, Any], None] | None = None,
    ) -> None:
        self.model, self.modes, self.entered, self.left = model, modes, entered, left
        self.running: list[tuple[str, nn.Module, Any]] = []
        self._handles: list[RemovableHandle] = []
        self._open_modes = ExitStack()

    @property
    def path(self) -> str:
        """The innermost running module's path; the root's is the empty text."""
        return self.running[-1][0] if self.running else ""

    @property
    def module(self) -> nn.Module:
        """The innermost running module."""
        return self.running[-1][1] if self.running else self.model

    @property
    def owner(self) -> str:
        """The path of the innermost running module that is no dropout."""
        return next((path for path, module, _ in reversed(self.running) if not drops(module)), "")

    def __enter__(self) -> "ModuleStack":
        for path, module in self.model.named_modules():
            self._handles += [
                module.register_forward_pre_hook(partial(self._before, path), prepend=True, with_kwargs=True),
                # Also after an exception, such as the one that ends a recomputation early.
                module.register_forward_hook(partial(self._after, path), with_kwargs=True, always_call=True),
            ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.running.clear()
        self._open_modes.close()

    def _before(self, path: str, module: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
        if not self.running:
            for mode in self.modes:
                self._open_modes.enter_context(mode)
        started = None if self.entered is None else self.entered(path, (*args, *kwargs.values()))
        self.running.append((path, module, started))

    def _after(
        self, path: str, module: nn.Module, args: tuple, kwargs: Mapping[str, Any], output: Any
    ) -> None:
        started = self.running[-1][2]
        if self.left is not None and output is not None:
            self.left(path, module, (*args, *kwargs.values()), output, started)
        self.running.pop()
        if not self.running:
            self._open_modes.close()
