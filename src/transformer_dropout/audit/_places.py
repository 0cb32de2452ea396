"""What kind of place an operation acts on, judged by what the data did before it and after it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from ..sites.observation.lineage import NOTHING, Lineage, Origin
from ..sites.observation.roles import EARLY

# How modules and attributes of attention are named, which is where a rate is looked for.
ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)


def block_paths(model: nn.Module) -> set[str]:
    """Return the paths of the outermost numbered modules that have parts: the blocks."""
    numbered = {
        path
        for path, module in model.named_modules()
        if path.rpartition(".")[2].isdigit() and any(module.children()) and is_callable(module)
    }
    return {path for path in numbered if not any(outer in numbered for outer in parents(path))}


def is_callable(module: nn.Module) -> bool:
    """Return whether a module can run, rather than only hold others."""
    return not isinstance(module, nn.ModuleList | nn.ModuleDict)


def parents(path: str) -> Iterable[str]:
    """Yield the paths of the modules around a module, from the inside out, without the root's."""
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def within(path: str, outer: str) -> bool:
    """Return whether a module is another one or lies inside it."""
    return not outer or path == outer or path.startswith(f"{outer}.")


@dataclass(kw_only=True)
class Trace:
    """What was seen around one random operation.

    Attributes:
        module: the innermost one that was running.
        named: the kind that its module is named after, of a layer that `regularize_` placed.
        in_block: whether that lies in a block.
        weights: whether what it acts on are attention weights by their numbers, or by the function.
        shape: of what was drawn.
        origin: of what it acts on; None while that is not known.
    """

    module: nn.Module
    named: str | None = None
    in_block: bool = False
    weights: bool = False
    shape: tuple[int, ...] = ()
    origin: Origin | None = None

    @property
    def one_per_sample(self) -> bool:
        """Whether at most one number was drawn for each sample."""
        return all(size == 1 for size in self.shape[1:]) and len(self.shape) != 1


def kind_of(trace: Trace, number: int, lineage: Lineage, *, before_output: bool) -> str:
    """Return the kind of site that an operation acted on, ``unknown`` where nothing tells.

    Args:
        trace: what was seen around it.
        number: the operation's.
        lineage: of the whole forward.
        before_output: whether the output layer takes what it leaves.
    """
    origin = trace.origin or NOTHING
    if trace.named is not None:
        return trace.named
    if trace.weights or origin.role == "weights":
        return "attention_weights"
    if origin.role == "scores":
        return "attention_scores"
    if number in lineage.whole_samples or (trace.origin is None and trace.one_per_sample):
        return "block"
    later, branch = number in lineage.used, number in lineage.joined
    kind = kind_by_role(origin, later=later, branch=branch)
    behind = origin.role == "stream" and not trace.in_block and not branch
    # Behind the last block of an encoder, whose output a decoder's attention takes.
    if kind == "unknown" and behind and not before_output:
        return "embedding"
    # Before the output layer of a model without residual sums, as a recurrent one is.
    if (kind == "unknown" and before_output) or (
        before_output and kind.startswith("mlp") and origin.attended and not origin.joined
    ):
        return "classifier"
    return kind


def kind_by_role(origin: Origin, *, later: bool, branch: bool) -> str:
    """Return the kind of site by what is dropped and where it goes.

    Args:
        origin: of what is dropped.
        later: whether an attention or a residual stream took it.
        branch: whether it was added to a residual stream.
    """
    if origin.role == "mixed":
        return "attention_output"
    if origin.together and branch:
        # The outputs of an attention and of an MLP side by side: what the block adds.
        return "block"
    before_all = not origin.attended and not branch
    if before_all and later and (origin.role in EARLY or origin.role in ("hidden", "transformed")):
        return "embedding"
    # In a model with residual sums, what is added to none of them belongs to the head.
    of_head = origin.joined and not branch and not later
    if origin.role in ("hidden", "transformed") and not of_head:
        return "mlp_hidden" if origin.role == "hidden" else "mlp_output"
    if origin.role == "projected" and branch:
        # Linear all through, and no attention.
        return "mlp_output"
    return "classifier" if of_head and origin.attended else "unknown"
