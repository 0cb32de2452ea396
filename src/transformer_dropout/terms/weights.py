"""Which weights an optimizer decays, how fast each learns, and how a user names some of them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError, did_you_mean
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
    """

    parameter: nn.Parameter
    names: list[str]
    modules: list[nn.Module]

    @property
    def current(self) -> nn.Parameter:
        """The parameter that the module holds now: sharding a model puts new ones in place.

        Raises:
            InputError: when the module holds none under this name any more.
        """
        now = self.modules[0]._parameters.get(self.names[0].rpartition(".")[2])
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
    """Say whether a module normalises, by its class's name: every family brings its own RMSNorm."""
    name = type(module).__name__.lower()
    return "norm" in name and "embed" not in name


def is_bias(name: str) -> bool:
    """Say whether a name calls its parameter a bias: ``down_proj_bias`` and ``attention_bias.weight`` do."""
    *path, last = name.split(".")
    return "bias" in last.split("_") or (bool(path) and path[-1].endswith("bias"))


def trainable_parameters(model: nn.Module) -> list[Held]:
    """Return each trainable parameter once, in the model's order.

    Raises:
        InputError: when there is none.
    """
    found: dict[nn.Parameter, Held] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module.named_parameters(path, recurse=False, remove_duplicate=False):
            if parameter.requires_grad:
                held = found.setdefault(parameter, Held(parameter=parameter, names=[], modules=[]))
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
    model: nn.Module, weight_decay: float, *, decay_embeddings: bool = True, exclude: Patterns = ()
) -> list[dict[str, Any]]:
    """Split a model's trainable parameters into a decayed and an undecayed optimizer group.

    Norms, biases and one-dimensional parameters are left alone: decay pulls them to 0, where a norm's gain
    has no reason to be. A parameter that has one long axis among axes of length 1, such as a class token or
    a layer scale, is one-dimensional too. A tied parameter appears once.

    Args:
        model: any module.
        weight_decay: decay of the first group; the second has 0.
        decay_embeddings: whether embeddings are decayed, those tied to an output layer included.
        exclude: Unix patterns of further parameter names to leave alone, for example ``"*.A_log"``.

    Raises:
        InputError: for a negative decay, a pattern that matches nothing, or nothing trainable.

    Paper: Loshchilov and Hutter 2019, "Decoupled weight decay regularization".
    """
    check_not_negative("weight_decay", weight_decay)
    parameters = trainable_parameters(model)
    left_alone = {held.parameter for held in matching(parameters, exclude)}
    decayed, others = [], []
    for held in parameters:
        decays = held.is_matrix and held.parameter not in left_alone
        decays = decays and (decay_embeddings or not held.is_embedding)
        (decayed if decays else others).append(held.parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay, "decayed": True},
        {"params": others, "weight_decay": 0.0, "decayed": False},
    ]


def layerwise_lr_groups(
    model: nn.Module,
    lr: float,
    decay: float,
    *,
    weight_decay: float = 0.0,
    decay_embeddings: bool = True,
    blocks: str | None = None,
    head: Patterns = (),
) -> list[dict[str, Any]]:
    """Return optimizer groups whose learning rate falls from the head down to the embeddings.

    Formula: ``lr * decay^(n_blocks - block)`` for block 0 to ``n_blocks - 1``, ``lr`` for the head, and
    ``lr * decay^(n_blocks + 1)`` for the embeddings. Outside the blocks, embeddings are what an embedding
    module holds and what the model defines before its blocks; the head is the rest. Each part is split as by
    `weight_decay_groups`. A group also carries its ``part`` (``embeddings``, the path of a block, or
    ``head``) and its ``lr_scale``, for a loop that sets learning rates itself.

    Args:
        model: a model with a list of blocks.
        lr: learning rate of the head.
        decay: factor from a block to the one below, above 0 and at most 1; 0.65 to 0.95 are usual.
        weight_decay: decay of the matrices.
        decay_embeddings: whether embeddings are decayed.
        blocks: path of the blocks, an ``nn.ModuleList`` or ``nn.Sequential``; None for the one longest
            ``nn.ModuleList``.
        head: Unix patterns of parameter names that belong to the head whatever the rule above says.

    Raises:
        InputError: for a number out of range, a pattern that matches nothing, or blocks that are not there
            or not the only longest ones.

    Paper: Clark et al. 2020, "ELECTRA: pre-training text encoders as discriminators rather than generators".
    """
    if not 0 < decay <= 1:
        raise InputError(f"decay is {decay}; it must be above 0 and at most 1.")
    check_not_negative("lr", lr)
    path, n_blocks = find_blocks(model, blocks)
    depths = parameter_depths(trainable_parameters(model), path, n_blocks, head)
    groups = []
    for depth in range(n_blocks + 2):
        scale = decay ** (n_blocks + 1 - depth)
        part = {0: "embeddings", n_blocks + 1: "head"}.get(depth, f"{path}.{depth - 1}")
        for group in weight_decay_groups(model, weight_decay, decay_embeddings=decay_embeddings):
            group["params"] = [p for p in group["params"] if depths[p] == depth]
            if group["params"]:
                groups.append(group | {"lr": lr * scale, "lr_scale": scale, "part": part})
    return groups


def find_blocks(model: nn.Module, path: str | None) -> tuple[str, int]:
    """Return the path and the number of a model's blocks.

    Raises:
        InputError: when ``path`` is no list of blocks, or without it no list is longer than all others.
    """
    lists: dict[str, int] = {}
    sequences: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and next(module.parameters(), None) is not None:
            sequences[name] = len(module)
            # A list inside a block, such as experts, holds no blocks.
            if isinstance(module, nn.ModuleList) and not any(inside(name, outer) for outer in lists):
                lists[name] = len(module)
    if path is not None:
        if path not in sequences:
            raise InputError(
                f"blocks is {path!r}, which is no list of blocks.{did_you_mean(path, sequences)}"
            )
        return path, sequences[path]
    longest = [name for name, length in lists.items() if length == max(lists.values())]
    if len(longest) != 1:
        found = f"the lists {', '.join(longest)} are equally long" if longest else "there is no nn.ModuleList"
        raise InputError(f"The blocks of the model are not clear: {found}; name theirs with blocks='PATH'.")
    return longest[0], lists[longest[0]]


def inside(name: str, path: str) -> bool:
    """Say whether a dotted name lies under a path; the empty path is the model itself."""
    return not path or name.startswith(f"{path}.")


def parameter_depths(
    parameters: list[Held], path: str, n_blocks: int, head: Patterns
) -> dict[nn.Parameter, int]:
    """Return 0 for embeddings, ``block + 1`` in a block and ``n_blocks + 1`` in the head."""
    depths: dict[nn.Parameter, int] = {}
    top = {held.parameter for held in matching(parameters, head)}
    below_blocks = True
    for held in parameters:
        # A tied parameter lies where it is used first.
        name = held.names[0]
        if inside(name, path):
            below_blocks = False
            depth = int(name.removeprefix(path).lstrip(".").split(".")[0]) + 1
        elif below_blocks or held.is_embedding:
            depth = 0
        else:
            depth = n_blocks + 1
        depths[held.parameter] = n_blocks + 1 if held.parameter in top else depth
    return depths


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
