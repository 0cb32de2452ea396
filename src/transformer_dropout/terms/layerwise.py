"""Learning rates that fall from a model's head to its embeddings, and where its blocks are."""

from typing import Any

from torch import nn

from ..errors import InputError, did_you_mean
from .weights import Held, Patterns, check_not_negative, matching, trainable_parameters, weight_decay_groups


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
                whole = scale * group.get("lr_scale", 1.0)
                groups.append(group | {"lr": lr * whole, "lr_scale": whole, "part": part})
    return groups


def find_blocks(model: nn.Module, path: str | None) -> tuple[str, int]:
    """Return the path and the number of a model's blocks.

    Raises:
        InputError: when ``path`` is no list of blocks, or without it no list, or sequence of modules of one
            class, is longer than all others.
    """
    lists: dict[str, int] = {}
    sequences: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and next(module.parameters(), None) is not None:
            sequences[name] = len(module)
            # A list inside a block, such as experts, holds no blocks.
            blocks = isinstance(module, nn.ModuleList) or alike(module)
            if blocks and not any(inside(name, outer) for outer in lists):
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


def alike(module: nn.Module) -> bool:
    """Return whether a module's children, two or more, are of one class and have children of their own."""
    children = list(module.children())
    kinds = set(map(type, children))
    return len(children) > 1 and len(kinds) == 1 and all(any(child.children()) for child in children)


def inside(name: str, path: str) -> bool:
    """Return whether a dotted name lies under a path; the empty path is the model itself."""
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
