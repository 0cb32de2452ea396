"""Whether the tokens in a block influence each other: one is moved, the others are watched."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..sites.observation.inputs import call
from ..sites.observation.lineage import first_tensor
from ..sites.observation.restore import unchanged

TOLERANCE = 1e-5


class Watch:
    """Remembers what the modules of some blocks are given and return, and moves a token of each block.

    In a second forward each block is given what it was given in the first, but for one token; what it returns
    is compared and then replaced by what it returned before, so that every block is measured on its own.

    Args:
        model: the model.
        blocks: by the path of each block, the dimension of the tokens in what it is given.
    """

    def __init__(self, model: nn.Module, blocks: Mapping[str, int]) -> None:
        self.model, self.blocks = model, blocks
        self.moving = False
        self.given: dict[str, list[Tensor]] = {}
        self.seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.times: dict[str, int] = {}
        self.moved: dict[str, list[str]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the forwards inside the ``with`` block."""
        self.times.clear()
        handles = []
        for block in self.blocks:
            root = self.model.get_submodule(block)
            handles.append(root.register_forward_pre_hook(partial(self.before, block), with_kwargs=True))
            for name, module in root.named_modules():
                path = f"{block}.{name}".rstrip(".")
                handles.append(
                    module.register_forward_hook(partial(self.after, block, path), with_kwargs=True)
                )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def before(self, block: str, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Forward pre-hook of a block: remember what it is given, or give it that with one token moved."""
        place = next((i for i, value in enumerate(args) if isinstance(value, Tensor)), None)
        name = next((k for k, value in kwargs.items() if isinstance(value, Tensor)), None)
        x = args[place] if place is not None else kwargs.get(name or "")
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 3:
            return None
        if not self.moving:
            self.given.setdefault(block, []).append(x.clone())
            return None
        known = self.given.get(block, [])
        time = self.times.get(block, 0)
        if time >= len(known):
            return None
        x = self.with_a_token_moved(block, known[time])
        if place is not None:
            return (*args[:place], x, *args[place + 1 :]), kwargs
        return args, {**kwargs, str(name): x}

    def with_a_token_moved(self, block: str, x: Tensor) -> Tensor:
        """Return what a block was given with other numbers in one token."""
        moved, dimension = x.clone(), self.blocks[block]
        token = moved.select(dimension, x.shape[dimension] // 2)
        token.copy_(token.roll(1, -1) + 0.5)
        return moved

    def after(self, block: str, path: str, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        """Forward hook: remember a call of a module; in the second forward say whether it moved others."""
        x, y = first_tensor((args, kwargs)), first_tensor((output,))
        if x is None or y is None or not y.is_floating_point():
            return None
        time = self.times.get(path, 0)
        self.times[path] = time + 1
        if not self.moving:
            self.seen.setdefault(path, []).append((x.clone(), y.clone()))
            return None
        known = self.seen.get(path, [])
        if time >= len(known) or known[time][1].shape != y.shape:
            return None
        given, returned = known[time]
        # Where others came in moved, something before has moved them.
        came = path != block and self.others_moved(block, given, x)
        if not came and self.others_moved(block, returned, y):
            self.moved.setdefault(block, []).append(path)
        if path != block or not isinstance(output, Tensor | tuple):
            return None
        return returned if isinstance(output, Tensor) else (returned, *output[1:])

    def others_moved(self, block: str, before: Tensor, after: Tensor) -> bool:
        """Return whether anything but the moved token is different."""
        given, dimension = self.given.get(block), self.blocks[block]
        if not given or before.shape != after.shape:
            return False
        tokens = given[0].shape[dimension]
        # A convolution has them last.
        where = [d for d, size in enumerate(after.shape) if size == tokens and (d or not dimension)]
        if not where:
            return False
        dimension = dimension if dimension in where else where[-1]
        same = torch.isclose(after, before, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
        same.select(dimension, tokens // 2).fill_(True)
        return not bool(same.all())


def mixers(model: nn.Module, inputs: Any, blocks: Mapping[str, int]) -> dict[str, list[str]]:
    """Return, for each block in which a token influences others, the modules that return others changed.

    Args:
        model: the model, in training, with everything dropped that is to be dropped.
        inputs: what it is called with.
        blocks: by the path of each block, the dimension of the tokens in what it is given.

    Returns:
        by block, paths in the order in which the modules end, itself last; without those in which no token
        influences another.
    """
    watch = Watch(model, blocks)
    for moving in (False, True):
        watch.moving = moving
        with unchanged(model), torch.no_grad(), watch.watching():
            model.train()
            torch.manual_seed(0)
            call(model, inputs)
    return {block: paths for block, paths in watch.moved.items() if block in paths}
