"""What kind of place an operation acts on, judged by what was seen around it."""

import re
from collections.abc import Iterable

from torch import Tensor, nn

ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
MLP = re.compile(r"mlp|ffn|feed_?forward|dense_?relu", re.IGNORECASE)


def block_paths(model: nn.Module) -> set[str]:
    """Return the paths of the outermost numbered modules that have parts: the blocks."""
    numbered = {
        path
        for path, module in model.named_modules()
        if path.rpartition(".")[2].isdigit() and any(module.children())
    }
    return {path for path in numbered if not any(outer in numbered for outer in parents(path))}


def parents(path: str) -> Iterable[str]:
    """Yield the paths of the modules around a module, from the inside out, without the root's."""
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def within(path: str, outer: str) -> bool:
    """Say whether a module is another one or lies inside it."""
    return not outer or path == outer or path.startswith(f"{outer}.")


class Places:
    """What one forward has passed so far, from which the kind of a place follows.

    Args:
        model: the model that runs.
    """

    def __init__(self, model: nn.Module) -> None:
        self.blocks = block_paths(model)
        self.entered_blocks: list[str] = []
        self.finished = ""
        self.width: int | None = None

    def enter(self, path: str, inputs: tuple) -> None:
        """Take note that a module begins."""
        if path in self.blocks:
            self.entered_blocks.append(path)
            first = next((value for value in inputs if isinstance(value, Tensor)), None)
            if self.width is None and first is not None and first.ndim:
                self.width = first.shape[-1]

    def leave(self, path: str) -> None:
        """Take note that a module that is no dropout has ended."""
        self.finished = path

    def kind(self, path: str, owner: str, *, weights: bool, shape: tuple[int, ...]) -> str:
        """Return the kind of site that an operation acts on, ``unknown`` where nothing tells.

        Args:
            path: the innermost module.
            owner: the innermost module that is no dropout.
            weights: whether the operation acts on attention weights.
            shape: of the mask.
        """
        if weights:
            return "attention_weights"
        if not shape or (len(shape) > 1 and all(size == 1 for size in shape[1:])):
            return "block"
        block = next((outer for outer in (path, *parents(path)) if outer in self.blocks), None)
        if block is None:
            return self._outside_blocks(owner)
        if self.width is not None and shape[-1] not in (self.width, 1):
            return "mlp_hidden"
        inside = path[len(block) :]
        before = self.finished[len(block) :] if within(self.finished, block) else ""
        if ATTENTION.search(inside) or (ATTENTION.search(before) and not MLP.search(inside)):
            return "attention_output"
        return "mlp_output" if before or MLP.search(inside) else "unknown"

    def _outside_blocks(self, owner: str) -> str:
        if not self.blocks:
            return "unknown"
        passed = [block for block in self.entered_blocks if within(block, owner)]
        if any(within(block, owner) for block in self.blocks):
            return "classifier" if passed else "embedding"
        return "classifier" if self.entered_blocks else "embedding"
