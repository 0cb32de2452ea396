"""Which weights an optimizer decays, how fast each learns, and how a user names some of them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..kernels.torch_internals import own_parameters
from ..schedules import Schedule

Patterns = str | Iterable[str]
# Whatever the shape of their weight, it multiplies an input: (1, width) is a matrix with one row.
MATRIX_MODULES = (nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, kw_only=True)
class Held:
    """One trainable parameter with every place that holds it; a tied one has several.

    Attributes:
        parameter: the parameter.
        names: its names in the model, the first first.
        modules: the module behind each name.
        options: what the module around it says of its optimizer group, as ``optimizer_options``.
    """

    parameter: nn.Parameter
    names: list[str]
    modules: list[nn.Module]
    options: Mapping[str, float] = field(default_factory=dict)

    @property
    def current(self) -> nn.Parameter:
        """The parameter that the module holds now: sharding a model puts new ones in place.

        Raises:
            InputError: when the module holds none under this name any more.
        """
        now = own_parameters(self.modules[0]).get(self.names[0].rpartition(".")[2])
        if now is None or now.shape != self.parameter.shape:
            raise InputError(
                f"{self.names[0]} is no parameter of shape {tuple(self.parameter.shape)} any more; build "
                "this after whatever changed the model, and shard with fully_shard, not FSDP's first version."
            )
        return now

    @property
    def is_embedding(self) -> bool:
        """Whether an embedding holds it, tied to an output layer or not."""
        return any("embed" in type(module).__name__.lower() for module in self.modules)

    @property
    def is_matrix(self) -> bool:
        """Whether it is no norm's, no bias, and no vector, be it in a shape such as (1, 1, width)."""
        axes = sum(size > 1 for size in self.parameter.shape)
        plain = any(isinstance(module, MATRIX_MODULES) for module in self.modules)
        return (
            self.parameter.ndim >= 2
            and (axes >= 2 or plain)
            and not any(is_norm(module) for module in self.modules)
            and not any(is_bias(name) for name in self.names)
        )


def is_norm(module: nn.Module) -> bool:
    """Return whether a module normalises, by its class's name: every family brings its own RMSNorm."""
    name = type(module).__name__.lower()
    return "norm" in name and "embed" not in name


def is_bias(name: str) -> bool:
    """Return whether a name calls its parameter a bias: ``down_proj_bias``, ``attention_bias.weight``."""
    *path, last = name.split(".")
    return "bias" in last.split("_") or (bool(path) and path[-1].endswith("bias"))


def trainable_parameters(model: nn.Module) -> list[Held]:
    """Return each trainable parameter once, in the model's order.

    Raises:
        InputError: when there is none.
    """
    found: dict[nn.Parameter, Held] = {}
    options: dict[str, Mapping[str, float]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        around = options.get(path.rpartition(".")[0], {})
        options[path] = getattr(module, "optimizer_options", around)
        for name, parameter in module.named_parameters(path, recurse=False, remove_duplicate=False):
            if parameter.requires_grad:
                new = Held(parameter=parameter, names=[], modules=[], options=options[path])
                held = found.setdefault(parameter, new)
                held.names.append(name)
                held.modules.append(module)
    if not found:
        raise InputError("The model has no trainable parameter; call requires_grad_() on what is to train.")
    return list(found.values())


def matching(parameters: list[Held], patterns: Patterns) -> list[Held]:
    """Return the parameters with a name that matches a Unix pattern, in the model's order.

    Raises:
        InputError: for a pattern that matches none; the message lists the names, numbers as ``*``.
    """
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for held in parameters for name in held.names):
            names = dict.fromkeys(re.sub(r"\.\d+(?=\.)", ".*", held.names[0]) for held in parameters)
            raise InputError(f"The pattern {pattern!r} matches no parameter; there are: {', '.join(names)}.")
    return [h for h in parameters if any(fnmatchcase(name, p) for name in h.names for p in patterns)]


def select_parameters(model: nn.Module, select: Patterns | None = None) -> list[Held]:
    """Return the trainable matrices of a model, or exactly the parameters that patterns name.

    Raises:
        InputError: when there is nothing to return.
    """
    parameters = trainable_parameters(model)
    if select is not None:
        return matching(parameters, select)
    matrices = [held for held in parameters if held.is_matrix]
    if not matrices:
        raise InputError(
            "The model has no trainable matrix; name the parameters that you mean with select, for example "
            f"select={parameters[0].names[0]!r}."
        )
    return matrices


def starting_values(
    parameters: list[Held], pretrained: Mapping[str, Tensor] | None
) -> tuple[list[Held], list[Tensor]]:
    """Return the parameters that have a pre-trained value of their own shape, and copies of these values.

    Args:
        parameters: those to look up.
        pretrained: a ``state_dict``; None for the parameters as they are now.

    Raises:
        InputError: when ``pretrained`` knows none of them.
    """
    known, values = [], []
    for held in parameters:
        found = held.parameter.detach()
        if pretrained is not None:
            found = next((pretrained[name] for name in held.names if name in pretrained), None)
        if found is not None and found.shape == held.parameter.shape:
            known.append(held)
            values.append(found.detach().to(held.parameter, copy=True))
    if not known:
        wanted = parameters[0].names[0] if parameters else "any selected parameter"
        raise InputError(
            f"pretrained has no value for {wanted} or any other selected parameter, as its names begin with "
            f"{next(iter(pretrained or {}), 'nothing')!r}; pass the state_dict of this very model class."
        )
    return known, values


def value_at(schedule: Schedule, progress: float) -> float:
    """Return a schedule's value.

    Raises:
        InputError: for a progress outside [0, 1].
    """
    if not 0 <= progress <= 1:
        raise InputError(f"progress is {progress}; it is the fraction of training done, between 0 and 1.")
    return schedule(progress)


def weight_decay_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    decay_embeddings: bool = True,
    exclude: Patterns = (),
    lr: float | None = None,
) -> list[dict[str, Any]]:
    """Split a model's trainable parameters into a decayed and an undecayed optimizer group.

    Norms, biases and one-dimensional parameters are left alone: decay pulls them to 0, where a norm's gain
    has no reason to be. A parameter that has one long axis among axes of length 1, such as a class token or
    a layer scale, is one-dimensional too. A tied parameter appears once.

    The parameters inside a module with ``optimizer_options``, such as the gate of ``AnchoredDropout``, have a
    further group with these: its ``weight_decay``, and the ``lr_scale`` that multiplies the learning rate.

    Args:
        model: any module.
        weight_decay: decay of the first group; the second has 0.
        decay_embeddings: whether embeddings are decayed, those tied to an output layer included.
        exclude: Unix patterns of further parameter names to leave alone, for example ``"*.A_log"``.
        lr: learning rate of the optimizer, for ``lr * lr_scale`` where a group has an ``lr_scale``. Without
            it the loop that sets learning rates has to multiply.

    Raises:
        InputError: for a negative number, a pattern that matches nothing, or nothing trainable.

    Paper: Loshchilov and Hutter 2019, "Decoupled weight decay regularization".
    """
    check_not_negative("weight_decay", weight_decay)
    check_not_negative("lr", 0.0 if lr is None else lr)
    parameters = trainable_parameters(model)
    left_alone = {held.parameter for held in matching(parameters, exclude)}
    decayed, others = [], []
    further: dict[tuple, dict[str, Any]] = {}
    for held in parameters:
        if held.options:
            of_its_own = {"params": [], "weight_decay": 0.0, "decayed": False, **held.options}
            group = further.setdefault(tuple(sorted(held.options.items())), of_its_own)
            group["params"].append(held.parameter)
            continue
        decays = held.is_matrix and held.parameter not in left_alone
        decays = decays and (decay_embeddings or not held.is_embedding)
        (decayed if decays else others).append(held.parameter)
    for group in further.values():
        if lr is not None and "lr_scale" in group:
            group["lr"] = lr * group["lr_scale"]
    return [
        {"params": decayed, "weight_decay": weight_decay, "decayed": True},
        {"params": others, "weight_decay": 0.0, "decayed": False},
        *further.values(),
    ]


def decayed_groups(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return the optimizer groups whose weights decay, be their decay 0 at the moment.

    Raises:
        InputError: when the groups were not made here.
    """
    if not any("decayed" in group for group in optimizer.param_groups):
        raise InputError(
            "The optimizer does not say which parameters decay; build it from td.weight_decay_groups(model, "
            "weight_decay)."
        )
    return [group for group in optimizer.param_groups if group.get("decayed")]


def set_weight_decay(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Move the weight decay of the decayed groups, and of no other.

    With a schedule: ``td.set_weight_decay(optimizer, schedule(step / steps))`` before each step.

    Args:
        optimizer: built from `weight_decay_groups` or `layerwise_lr_groups`.
        value: the new decay.

    Raises:
        InputError: for a negative value, or an optimizer whose groups do not say what decays.
    """
    check_not_negative("weight decay", value)
    for group in decayed_groups(optimizer):
        group["weight_decay"] = value


def check_not_negative(name: str, value: float) -> None:
    """Raise InputError for a number below 0, or none."""
    if not value >= 0:
        raise InputError(f"{name} is {value}; it must be at least 0.")
