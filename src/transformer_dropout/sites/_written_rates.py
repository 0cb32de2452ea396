"""Rates that stand in a model's code, as in ``F.dropout(x, 0.1)``, and how they are set all the same.

Such a rate has no attribute. It is named after the call that it is given to, by file, line and column, below
the module whose code makes the call: ``blocks.0.model:31:15=1/10``. While that module runs, a mode gives the
call another rate. `torch.compile` leaves the module's own code to Python then.
"""

import re
import sys
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import partial
from itertools import islice
from os import sep
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from ..errors import InputError
from ..kernels.compiled_hooks import own_forward, set_own_forward
from ..kernels.torch_internals import recomputed_by

WRITTEN = re.compile(r"[^.:]+:\d+:\d+(=(\d+)/(\d+))?")
# The attribute of a module with the rates that its code is given in place of those that stand there.
GIVEN = "given_rates"
# Where each function takes its rate: by place and by name.
RATES = {
    F.scaled_dot_product_attention: (4, "dropout_p"),
    F.multi_head_attention_forward: (11, "dropout_p"),
    **dict.fromkeys(
        (
            *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout),
            *(torch.dropout, torch.dropout_, torch.alpha_dropout, torch.feature_dropout),
        ),
        (1, "p"),
    ),
}
DEFAULT = 0.5
# A smaller number stands for an attribute, changed by arithmetic: the rate itself is not known.
UNKNOWN_BELOW = 1e-4
LIBRARIES = tuple(f"{path}{sep}" for path in (Path(torch.__file__).parent, Path(__file__).parent.parent))


def written_name(function: Any, rate: float | None) -> str | None:
    """Return the name of the rate that a call under way is given; None for a function that takes none."""
    if function not in RATES or not rate:
        return None
    known = "" if rate < UNKNOWN_BELOW else "={0.numerator}/{0.denominator}".format(fraction(rate))
    return f"{call_site()}{known}"


def fraction(rate: float) -> Fraction:
    """Return a rate as a fraction, which has no point as a path's parts have."""
    return Fraction(rate).limit_denominator(10**6)


def call_site() -> str:
    """Return file, line and column of the innermost call from code that is neither PyTorch's nor ours."""
    frame: Any = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(LIBRARIES):
        frame = frame.f_back
    places = frame.f_code.co_positions()
    line, _, column, _ = next(islice(places, frame.f_lasti // 2, None), (None, None, None, None))
    stem = Path(frame.f_code.co_filename).stem.replace(".", "_").replace(":", "_")
    return f"{stem}:{line or frame.f_lineno}:{column or 0}"


def is_written(name: str) -> bool:
    """Return whether a rate's name, without the path before it, is that of a rate in the code."""
    return WRITTEN.fullmatch(name) is not None


def number_in(name: str) -> float | None:
    """Return the number that stands in the code; None where it is computed, and so not known."""
    number = name.partition("=")[2]
    return float(Fraction(number)) if number else None


def read_written(module: nn.Module, name: str) -> float | None:
    """Return the rate that a call is given; None where it is not known."""
    return vars(module).get(GIVEN, {}).get(name.partition("=")[0], number_in(name))


def set_written(module: nn.Module, name: str, rate: float) -> None:
    """Give a call another rate."""
    own = vars(module)
    if GIVEN not in own:
        own[GIVEN] = {}
        set_own_forward(module, partial(forward_with_given_rates, own_forward(module), module))
    own[GIVEN][name.partition("=")[0]] = rate


def leave_written(module: nn.Module, name: str) -> None:
    """Let a call have its own rate again; after the last the module's forward is as it was."""
    own = vars(module)
    own[GIVEN].pop(name.partition("=")[0], None)
    if own[GIVEN]:
        return
    del own[GIVEN]
    forward = own_forward(module)
    # Unless somebody wrapped it meanwhile: then it stays inside, and gives no rates.
    if isinstance(forward, partial) and forward.func is forward_with_given_rates:
        set_own_forward(module, forward.args[0])


def forward_with_given_rates(before: Any, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Run a module's forward, its own or that of its class, with the rates that its calls are given."""
    forward = partial(type(module).forward, module) if before is None else before
    given = vars(module).get(GIVEN)
    if not given:
        return forward(*args, **kwargs)
    if torch.compiler.is_compiling():
        raise InputError(
            f"A rate stands in the code of {type(module).__name__} ({next(iter(given))}), and torch.compile "
            "would not see another; read it from an attribute, or compile without fullgraph=True."
        )
    if "torch._dynamo" in sys.modules:
        # Below the break of a graph the rest is not to be compiled under the mode.
        forward = torch.compiler.disable(forward)
    with GivenRates(given):
        return forward(*args, **kwargs)


class GivenRates(TorchFunctionMode):
    """Gives calls other rates than those that stand in the code.

    Args:
        given: the rates by file, line and column of the calls.
    """

    def __init__(self, given: Mapping[str, float]) -> None:
        super().__init__()
        self.given = given

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        rate = self.given.get(call_site()) if func in RATES else None
        if rate is None:
            return func(*args, **kwargs)
        place, name = RATES[func]
        own = args[place] if len(args) > place else kwargs.get(name, DEFAULT if name == "p" else 0.0)
        if not own:
            # It drops nothing now, as in evaluation.
            return func(*args, **kwargs)
        self.follow_checkpoints()
        if len(args) > place:
            return func(*args[:place], rate, *args[place + 1 :], **kwargs)
        return func(*args, **{**kwargs, name: rate})

    def follow_checkpoints(self) -> None:
        """Have checkpoints inside the module give the same rates when they compute a function again.

        That happens in the backward pass, where this mode is not entered any more.

        Raises:
            InputError: where a checkpoint does not let it be done.
        """
        frame: Any = sys._getframe(1)
        while frame is not None and not self.is_entered_in(frame):
            try:
                found = recomputed_by(frame)
            except LookupError as error:
                raise InputError(
                    f"A rate stands in the code that a checkpoint computes again ({error}), which would "
                    "drop at the rate that stands there; read it from an attribute, or set checkpointing off."
                ) from None
            if found is not None:
                holder, name = found
                function = getattr(holder, name)
                if not self.is_followed(function):
                    setattr(holder, name, partial(computed_again, self, dict(self.given), function))
            frame = frame.f_back

    def is_entered_in(self, frame: Any) -> bool:
        """Return whether a Python frame is that in which this mode was entered."""
        entering = (forward_with_given_rates.__code__, computed_again.__code__)
        return frame.f_code in entering and frame.f_locals.get("given") is self.given

    def is_followed(self, function: Any) -> bool:
        """Return whether a function that is to be computed again gives the rates of this mode."""
        while isinstance(function, partial) and function.func is computed_again:
            if function.args[0] is self:
                return True
            function = function.args[2]
        return False


def computed_again(
    mode: GivenRates, given: Mapping[str, float], function: Callable[..., Any], *args: Any
) -> Any:
    """Run what a checkpoint computes again with the rates that a mode gave in the forward pass."""
    with GivenRates(given):
        return function(*args)
