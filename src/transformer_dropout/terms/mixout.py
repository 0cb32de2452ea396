"""Mixout: in training, weights are mixed with their pre-trained values."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from ..errors import InputError
from ..kernels.compiled_hooks import NoticedHook
from ..kernels.sharded import whole
from ..kernels.torch_internals import hooks_of, own_parameters
from ..schedules import Schedule, as_schedule
from ._noise_handle import NoiseHandle
from .weights import Patterns, select_parameters, starting_values


def mixout(weight: Tensor, pretrained: Tensor, p: float | Tensor) -> Tensor:
    """Replace each element by its pre-trained value with probability ``p``, and keep the expectation.

    Formula: ``(m u + (1 - m) w - p u) / (1 - p)``, ``m ~ Bernoulli(p)``, which equals
    ``u + dropout(w - u, p)``; ``p = 1`` gives ``u``.

    Args:
        weight: the current weight ``w``.
        pretrained: the pre-trained weight ``u``, of the same shape.
        p: probability of mixing in.

    Paper: Lee, Cho and Kang 2020, "Mixout: effective regularization to finetune large-scale pretrained
    language models".
    """
    return pretrained + functional.dropout(weight - pretrained, p)


class MixedWeight:
    """The two hooks that put a mixed weight in place of a parameter while its module runs in training.

    Hooks and not a parametrization, so that parameters keep their names, identity and tying.
    """

    def __init__(self, path: str, name: str, pretrained: Tensor) -> None:
        self.path, self.name, self.pretrained = path, name, pretrained
        self.p, self.rate = 0.0, torch.tensor(0.0, device=pretrained.device)
        self.plain: nn.Parameter | None = None
        self.reached = False

    def before(self, module: nn.Module, arguments: tuple) -> None:
        """Forward pre-hook: put the mixed weight in."""
        if module.training:
            held = own_parameters(module.get_submodule(self.path))
            plain = held[self.name]
            assert plain is not None
            self.plain, self.reached = plain, True
            self.pretrained = self.pretrained.to(plain)
            # Past nn.Module's check, which wants a Parameter: gradients must flow through the mixture.
            p = self.rate if torch.compiler.is_compiling() else self.p
            held[self.name] = mixout(plain, self.pretrained, p)  # pyrefly: ignore

    def after(self, module: nn.Module, arguments: tuple, output: Any) -> None:
        """Forward hook: put the parameter back; called after an exception too."""
        if self.plain is not None:
            own_parameters(module.get_submodule(self.path))[self.name] = self.plain
            self.plain = None


class Mixout(NoiseHandle):
    """The handle that `mixout_` returns.

    Attributes:
        p: the probability of mixing in, as last set.
    """

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)
        self._mixed: dict[str, MixedWeight] = {}

    def _set(self, value: float) -> None:
        if not 0 <= value <= 1:
            raise InputError(f"p is {value}, but a probability of mixing lies between 0 and 1.")
        self.p = value
        for mixed in self._mixed.values():
            mixed.p = value
            mixed.rate.fill_(value)

    def place(self, model: nn.Module, name: str, pretrained: Tensor) -> None:
        """Mix one parameter."""
        path, _, last = name.rpartition(".")
        parent, _, child = path.rpartition(".")
        # nn.MultiheadAttention never calls its output projection, it reads the projection's weight.
        inner = child if path and isinstance(model.get_submodule(parent), nn.MultiheadAttention) else ""
        module = model.get_submodule(parent if inner else path)
        for hook in hooks_of(module):
            other = getattr(hook, "__self__", None)
            if isinstance(other, MixedWeight) and (other.path, other.name) == (inner, last):
                raise InputError(
                    f"{name} is mixed already; call remove() on the handle of the first mixout_."
                )
        self._mixed[name] = mixed = MixedWeight(inner, last, pretrained)
        before = module.register_forward_pre_hook(mixed.before)
        after = module.register_forward_hook(mixed.after, always_call=True)
        self._hooks += [NoticedHook(module, before), NoticedHook(module, after)]

    @property
    def names(self) -> list[str]:
        """The parameters that are mixed."""
        return list(self._mixed)

    @property
    def unreached(self) -> list[str]:
        """Those of them that no training forward has mixed yet, as nothing called their module."""
        return [name for name, mixed in self._mixed.items() if not mixed.reached]


def mixout_(
    model: nn.Module,
    p: float | Schedule,
    *,
    pretrained: Mapping[str, Tensor] | None = None,
    select: Patterns | None = None,
) -> Mixout:
    """Let a model train with its weights mixed with the pre-trained ones, in place; see `mixout`.

    Each training forward of a module draws a new mixture of its weight; evaluation uses the plain weight.
    Parameters, their tying and the keys of ``state_dict`` stay. The pre-trained values are in the handle and
    not in ``state_dict``: give ``pretrained`` again when resuming.

    Args:
        model: the model, before it is compiled; it may be sharded with ``fully_shard`` before or after.
        p: probability of mixing in; a schedule moves with ``set_progress``.
        pretrained: a ``state_dict``; what it lacks or has in another shape is not mixed. None for the weights
            as they are now, the random ones of a new classifier among them.
        select: Unix patterns of parameter names; by default all trainable matrices but embeddings.

    Raises:
        InputError: for a p outside [0, 1], a pattern that matches nothing, a ``pretrained`` that fits
            nothing, or weights that are mixed already.

    Paper: Lee, Cho and Kang 2020, "Mixout: effective regularization to finetune large-scale pretrained
    language models".
    """
    parameters = select_parameters(model, select)
    if select is None:
        parameters = [held for held in parameters if not held.is_embedding]
    handle = Mixout(as_schedule(p))
    try:
        for held, value in zip(*starting_values(parameters, pretrained), strict=True):
            # A module that the model holds twice has two names, and mixes once.
            for name in dict(zip(held.modules, held.names, strict=True)).values():
                handle.place(model, name, whole(value))
        handle.set_progress(0.0)
    except Exception:
        # What fails halfway leaves the model as it was.
        if handle.names:
            handle.remove()
        raise
    return handle
