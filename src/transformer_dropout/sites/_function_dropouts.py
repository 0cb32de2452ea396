"""Modules whose code drops with functions, as far as the text of their classes tells."""

import inspect
import re

from torch import nn

# Of these it is known.
KNOWN = ("torch.", f"{__name__.partition('.')[0]}.")
CALL = re.compile(r"\b(F|functional|torch)\.\w*dropout\w*\(|\bdropout_p\s*=")


def function_dropouts(model: nn.Module) -> list[str]:
    """Return the paths of the modules whose classes call dropout as a function; not PyTorch's own nor ours.

    Args:
        model: any model, none of which is run.
    """
    calls: dict[type, bool] = {}
    found = []
    for path, module in model.named_modules():
        kind = type(module)
        if kind not in calls:
            calls[kind] = not kind.__module__.startswith(KNOWN) and calls_dropout(kind)
        if calls[kind]:
            found.append(path or "the model itself")
    return found


def calls_dropout(kind: type) -> bool:
    """Return whether the text of a class calls dropout as a function; False where there is no text."""
    try:
        return CALL.search(inspect.getsource(kind)) is not None
    except (OSError, TypeError):
        return False
