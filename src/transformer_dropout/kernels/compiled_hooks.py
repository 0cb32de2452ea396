"""Hooks that `torch.compile` notices.

By default a compiled graph is reused for every module of the same class without a look at whether it has
hooks: the graph of a plain model would serve a regularized one, and no layer would act, in silence. What the
compiler does look at is whether an instance has a ``forward`` of its own, and what that reads. So a hooked
module gets one that only passes on, and the compiler's settings stay as they are.
"""

from collections.abc import Callable
from functools import partial, update_wrapper, wraps
from types import MethodType
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

# The attribute with one stroke a hook, which the compiler compares before it reuses a graph.
TALLY = "noticed_hooks"


class NoticedHook:
    """A hook that `torch.compile` notices.

    Args:
        module: the hooked module; its ``forward`` becomes one of the instance, with the same signature.
        hook: what registering the hook returned.
    """

    def __init__(self, module: nn.Module, hook: RemovableHandle) -> None:
        self._module, self._hook = module, hook
        if TALLY not in vars(module):
            vars(module)["forward"] = passing_on(module)
        vars(module)[TALLY] = vars(module).get(TALLY, "") + "|"

    def remove(self) -> None:
        """Take the hook out; with the last one the module's forward is as it was."""
        self._hook.remove()
        own = vars(self._module)
        own[TALLY] = own[TALLY][1:]
        if own[TALLY]:
            return
        del own[TALLY]
        # Unless somebody wrapped it meanwhile: then it stays inside, and does nothing.
        if passes_on(own["forward"]):
            forward = own.pop("forward")
            if isinstance(forward, partial):
                own["forward"] = forward.args[0]


def passing_on(module: nn.Module) -> Callable[..., Any]:
    """Return a forward for an instance that does what its forward did.

    That of the class is looked up in each call, so that a change of the class is followed; and it is a method
    and no closure over the module, so that a deep copy runs its own.
    """
    before = vars(module).get("forward")
    if before is not None:
        return update_wrapper(partial(passed_on, before, module), before)

    @wraps(type(module).forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        show_tally(self)
        return type(self).forward(self, *args, **kwargs)

    return MethodType(forward, module)


def passed_on(before: Callable[..., Any], module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call the forward that an instance had before."""
    show_tally(module)
    return before(*args, **kwargs)


def show_tally(module: nn.Module) -> bool:
    """Return whether there are hooks to notice; reading it is what makes a graph depend on their number."""
    return getattr(module, TALLY, "") != ""


def own_forward(module: nn.Module) -> Callable[..., Any] | None:
    """Return the forward of an instance below the one that only passes on; None for that of its class."""
    forward = vars(module).get("forward")
    if not passes_on(forward):
        return forward
    return forward.args[0] if isinstance(forward, partial) else None


def set_own_forward(module: nn.Module, forward: Callable[..., Any] | None) -> None:
    """Give an instance a forward below the one that only passes on; None stands for that of its class."""
    own = vars(module)
    noticed = passes_on(own.pop("forward", None))
    if forward is not None:
        own["forward"] = forward
    if noticed:
        own["forward"] = passing_on(module)


def passes_on(forward: Any) -> bool:
    """Return whether an instance's forward is one made here, which does nothing of its own."""
    if isinstance(forward, partial):
        return forward.func is passed_on
    made = forward.__func__.__code__.co_filename if isinstance(forward, MethodType) else None
    return made == passing_on.__code__.co_filename
