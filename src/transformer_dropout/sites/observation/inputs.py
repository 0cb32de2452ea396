"""How a model is called with what a user has in hand."""

import inspect
from collections.abc import Mapping, MutableMapping, Sequence
from copy import copy
from typing import Any, NoReturn

from torch import Tensor, nn

from ...errors import InputError, first_line

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def arguments_for(model: nn.Module, inputs: Any) -> Arguments:
    """Return the positional and keyword arguments with which a model is called.

    A mapping becomes keywords, a tuple or a list positional arguments; where the signature of the model's
    ``forward`` does not take them so, they are passed whole, as the one argument.

    Args:
        model: the model.
        inputs: a mapping, a tuple, a list, a tensor, or any one object that the model takes.

    Raises:
        InputError: when the model cannot be called with them.
    """
    if inputs is None or isinstance(inputs, str | bytes | int | float | nn.Module):
        raise InputError(
            f"inputs is {described(inputs)}; give a dict of keywords, a tuple of positional arguments, or "
            "the one tensor or object that the model takes."
        )
    # Some wrappers put what they compute into the batch that they are given.
    ways: list[Arguments] = [((copy(inputs) if isinstance(inputs, MutableMapping) else inputs,), {})]
    if isinstance(inputs, Mapping) and all(isinstance(name, str) for name in inputs):
        ways.insert(0, ((), dict(inputs)))
    elif isinstance(inputs, tuple | list):
        ways.insert(0, (tuple(inputs), {}))
    return next((way for way in ways if takes(model, way)), None) or refuse(model, described(inputs))


def call(model: nn.Module, inputs: Any) -> Any:
    """Call a model with what a user has in hand.

    Raises:
        InputError: when its signature does not take them, or when it takes them whole and then fails on them.
    """
    args, kwargs = arguments_for(model, inputs)
    try:
        return model(*args, **kwargs)
    except (TypeError, AttributeError, LookupError) as error:
        whole = args and (args[0] is inputs or isinstance(inputs, MutableMapping))
        if whole and not isinstance(inputs, Tensor):
            refuse(model, described(inputs), error)
        raise


def checked_arguments(model: nn.Module, arguments: Arguments) -> Arguments:
    """Return the arguments of a call, unless the model does not take them.

    Raises:
        InputError: when it does not.
    """
    args, kwargs = arguments
    return arguments if takes(model, arguments) else refuse(model, described((*args, *kwargs.items())))


def takes(model: nn.Module, arguments: Arguments) -> bool:
    """Return whether the signature of a model's ``forward`` takes arguments."""
    args, kwargs = arguments
    try:
        inspect.signature(model.forward).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:  # a forward without a signature, which only the call itself can judge
        return True
    return True


def refuse(model: nn.Module, given: str, error: Exception | None = None) -> NoReturn:
    """Raise InputError: what the model takes, what it was given, and how it failed on that."""
    parameters = inspect.signature(model.forward).parameters
    failed = "" if error is None else f" ({first_line(error)})"
    raise InputError(
        f"{type(model).__name__}.forward takes ({', '.join(map(bare, parameters.values()))}), and cannot be "
        f"called with {given}{failed}; give a dict of these keywords, or a tuple in this order."
    )


def bare(parameter: inspect.Parameter) -> str:
    """Return a parameter as in a signature, without its annotation."""
    return str(parameter.replace(annotation=inspect.Parameter.empty))


def described(value: Any) -> str:
    """Return what a value is, in a few words: types, and shapes of tensors."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    kind = type(value).__name__
    if isinstance(value, Mapping):
        return f"a {kind} of {', '.join(map(str, value)) or 'nothing'}"
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return f"a {kind} of {', '.join(map(brief, value)) or 'nothing'}"
    return "None" if value is None else f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def brief(value: Any) -> str:
    """Return the type of a value, or the shape of a tensor."""
    return f"tensor{tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
