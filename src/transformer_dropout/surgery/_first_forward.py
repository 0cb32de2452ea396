"""The first training forward after a surgery says at which places no layer acted."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..errors import InputError
from ..sites import Site
from ._own_rates import Read

NAMED = 3


@dataclass(kw_only=True)
class Reached:
    """A place with a hook that says whether it has run in training.

    Attributes:
        name: the place's path and kind.
        acted: whether it has.
        asleep: whether it runs in evaluation, in the forward of the whole model that is under way.
        compiled: whether it has in a compiled graph, which depends on the number of hooks.
        hook: the hook.
    """

    name: str
    acted: bool = False
    asleep: bool = False
    compiled: bool = False
    hook: RemovableHandle | None = None


class FirstForward:
    """Watches a regularized model until its first training forward has ended.

    Places whose rate the model's own code reads have no hook, since torch's layers would leave their fused
    path in evaluation: there the reader says that it ran.

    Args:
        model: the model.
        places: each place, with the module that runs there, or the rate that is read there.
    """

    def __init__(self, model: nn.Module, places: Sequence[tuple[Site, nn.Module | Read]]) -> None:
        self.reads = [(f"{s.path} ({s.kind})", at) for s, at in places if isinstance(at, Read)]
        self.reached: list[Reached] = []
        self.told = False
        for site, at in places:
            if isinstance(at, nn.Module):
                place = Reached(name=f"{site.path} ({site.kind})")
                self.reached.append(place)
                place.hook = at.register_forward_pre_hook(partial(note, place))
        self.whole = model.register_forward_hook(partial(ended, self))

    @property
    def has_begun(self) -> bool:
        """Whether something has acted already."""
        return any(read.ran for _, read in self.reads) or any(place.acted for place in self.reached)

    def end(self) -> None:
        """Take all hooks out."""
        self.told = True
        self.whole.remove()
        for place in self.reached:
            if place.hook is not None:
                place.hook.remove()

    def tell(self) -> None:
        """Say once at which places nothing acted in the training forward that has ended.

        Raises:
            InputError: when nothing acted anywhere.
        """
        if self.told:
            return
        self.told = True
        for place in self.reached:
            if place.hook is not None and not place.compiled:
                place.hook.remove()
        places = [(name, read.ran) for name, read in self.reads]
        places += [(place.name, place.acted) for place in self.reached]
        missed = [name for name, acted in places if not acted]
        if not missed:
            return
        more = f" and {len(missed) - NAMED} more" if len(missed) > NAMED else ""
        named = f"{', '.join(missed[:NAMED])}{more}"
        if len(missed) == len(places) and not self.reads and all(place.asleep for place in self.reached):
            raise InputError(
                f"The recipe acts on nothing: in the first training forward {named} ran in evaluation, "
                "inside a model in training; call train() on the whole model before it."
            )
        if len(missed) == len(places):
            raise InputError(
                f"The recipe acts on nothing: in the first training forward {named} did not run, or was in "
                "evaluation; find the places that run with td.regularize_(model, recipe, inputs=batch)."
            )
        warnings.warn(
            f"The recipe did nothing at {named}: in the first training forward that did not run, or was in "
            "evaluation.",
            UserWarning,
            stacklevel=2,
        )


def note(place: Reached, module: nn.Module, arguments: tuple) -> None:
    """Forward pre-hook: take note that a place runs in training."""
    if module.training:
        # Written, never read, where it is compiled: no graph depends on it.
        place.acted = True
        if torch.compiler.is_compiling():
            place.compiled = True
    elif not torch.compiler.is_compiling():
        place.asleep = True


def ended(first: FirstForward, module: nn.Module, arguments: tuple, output: Any) -> None:
    """Forward hook of the whole model: the first training forward has ended."""
    if torch.compiler.is_compiling():
        return
    if module.training:
        first.whole.remove()
        first.tell()
    for place in first.reached:
        place.asleep = False
