"""Which modules are the blocks of a model: the innermost repeated ones that add to a residual stream."""

import re
from dataclasses import dataclass, field

from torch import nn

from .branches import Branch
from .graph import ModuleCall, RunGraph

LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(kw_only=True)
class BlockCalls:
    """One block of a model.

    Attributes:
        path: of its module; None where the block is no module of its own, but parts of parallel lists.
        calls: numbers of its calls, of every one where the block runs again and again.
        branches: what it adds, in the order of its first call.
    """

    path: str | None
    calls: list[int] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)


@dataclass(kw_only=True)
class BlockSequence:
    """Blocks that run one after the other."""

    blocks: list[BlockCalls] = field(default_factory=list)


def stacks_of(run: RunGraph, branches: list[Branch]) -> list[BlockSequence]:
    """Return the stacks of blocks of a run, in order."""
    attending = [branch for branch in branches if branch.attentions]
    chosen: dict[str, list[str]] = {}
    virtual: list[Branch] = []
    containers: dict[str, None] = {}
    for branch in attending or branches:
        unit = unit_of(run, branch, branches, bool(attending))
        if unit is None:
            virtual.append(branch)
        else:
            containers.setdefault(unit.path.rpartition(".")[0])
            chosen.setdefault(family(run, unit), []).append(unit.path)
    for unit in convolving(run, branches, chosen) if attending and not virtual else ():
        chosen.setdefault(family(run, unit), []).append(unit.path)
    stacks = [
        stack for names in chosen.values() if (stack := stack_of(run, names, containers, branches)).blocks
    ]
    taken = {id(branch) for stack in stacks for block in stack.blocks for branch in block.branches}
    rest = [branch for branch in branches if id(branch) not in taken]
    stacks += parallel(run, [branch for branch in virtual if id(branch) not in taken], rest)
    return sorted(stacks, key=lambda stack: stack.blocks[0].branches[0].add)


def convolving(run: RunGraph, branches: list[Branch], chosen: dict[str, list[str]]) -> list[ModuleCall]:
    """Return the blocks in which nothing attends and that attention follows, as those of early stages.

    Args:
        run: the run.
        branches: all that it adds.
        chosen: the paths of the blocks that attend, by their stack.
    """
    attended = [path for paths in chosen.values() for path in paths]
    last = max(branch.add for branch in branches if branch.attentions)
    lists = {f"{path.rpartition('.')[0]}.".removeprefix(".") for path in attended}
    found = []
    for branch in branches:
        unit = unit_of(run, branch, branches, False)
        if unit is None or not (repeats(run.model, unit.path) and unit.holds(branch.end)):
            continue
        # What lies in a block, or holds one, belongs to that.
        related = any(is_around(path, unit.path) or is_around(unit.path, path) for path in attended)
        inner = any(unit.path.startswith(p) and "." in unit.path.removeprefix(p) for p in lists)
        leads = run.depends(last, branch.add) or family(run, unit) in chosen
        if leads and not (related or inner):
            found.append(unit)
    return found


def is_around(outer: str, inner: str) -> bool:
    """Return whether a module is another, or holds it."""
    return f"{inner}.".startswith(f"{outer}.")


def unit_of(run: RunGraph, branch: Branch, branches: list[Branch], attending: bool) -> ModuleCall | None:
    """Return the module call that is the block around a branch; None where no module repeats there."""
    around = [run.calls[number] for number in run.calls[run.nodes[branch.add].call].around]
    # A module that does nothing but add is no block.
    items = [
        call for call in reversed(around[1:]) if repeats(run.model, call.path) and call.holds(branch.end)
    ]
    if not attending or is_parallel(run, branch):
        return items[0] if items else lone(around, branch)
    for call in items:
        others = (other for other in branches if not other.attentions and call.holds(other.add))
        if any(not in_smaller_block(run, other, branches, call) for other in others):
            return call
    if items:
        return items[0]
    # A layer of torch's may be the whole model.
    begin = 0 if isinstance(run.model, LAYERS) else 1
    return next((call for call in reversed(around[begin:]) if complete(call, branches)), None)


def in_smaller_block(run: RunGraph, branch: Branch, branches: list[Branch], outer: ModuleCall) -> bool:
    """Return whether a branch belongs to an attention in a smaller repeated module than one around both."""
    around = (run.calls[number] for number in run.calls[run.nodes[branch.add].call].around)
    smaller = [call for call in around if call.index > outer.index and repeats(run.model, call.path)]
    return any(other.attentions and call.holds(other.add) for call in smaller for other in branches)


def lone(around: list[ModuleCall], branch: Branch) -> ModuleCall | None:
    """Return the module around a branch that no other is like."""
    return around[-1] if len(around) > 1 else None


def complete(call: ModuleCall, branches: list[Branch]) -> bool:
    """Return whether a lone module holds an attention's branch, another one, and not several of each.

    What is given ids and returns logits holds more than a block.
    """
    inside = [branch for branch in branches if call.holds(branch.add)]
    streams = not call.shapes[0] or call.shapes[0][:1] == call.shapes[1][:1]
    return streams and 1 < len(inside) < 4 and any(not branch.attentions for branch in inside)


def is_parallel(run: RunGraph, branch: Branch) -> bool:
    """Return whether attention and MLP are added in one sum."""
    end = run.nodes[branch.end]
    mixed = [run.nodes[s].before for s in run.activations(end) if branch.inside >> s & 1]
    with_attention = [any(b >> a.product & 1 for a in branch.attentions) for b in mixed]
    return len(mixed) > 1 and True in with_attention and False in with_attention


def repeats(model: nn.Module, path: str) -> bool:
    """Return whether a module is one of several, or an item of a list."""
    parent, _, name = path.rpartition(".")
    around = model.get_submodule(parent)
    if isinstance(around, nn.ModuleList | nn.ModuleDict) or name.isdigit():
        return True
    alike = [type(part) for part in around.children()]
    return alike.count(type(model.get_submodule(path))) > 1


def family(run: RunGraph, call: ModuleCall) -> str:
    """Return what blocks of one stack have in common: the path of their list without its numbers."""
    parent, _, name = call.path.rpartition(".")
    stem = "" if name.isdigit() else type(call.module).__name__
    return f"{NUMBER.sub('*', parent)}:{stem}"


def stack_of(
    run: RunGraph, paths: list[str], containers: dict[str, None], branches: list[Branch]
) -> BlockSequence:
    """Return the stack that some blocks belong to, with their neighbours that do not attend."""
    units = set(paths)
    parents = {path.rpartition(".")[0] for path in paths}
    numbered = all(path.rpartition(".")[2].isdigit() for path in paths)
    listed = {p for p in parents if isinstance(run.model.get_submodule(p), nn.ModuleList | nn.ModuleDict)}
    blocks: dict[str, BlockCalls] = {}
    for call in run.calls:
        parent, _, name = call.path.rpartition(".")
        neighbour = parent in listed or (parent in parents and numbered and name.isdigit())
        if call.path not in units and not neighbour:
            continue
        inside = [branch for branch in branches if call.holds(branch.add)]
        if call.path not in units and not inside:
            continue
        block = blocks.setdefault(call.path, BlockCalls(path=call.path, branches=inside))
        block.calls.append(call.index)
    return BlockSequence(blocks=[block for block in blocks.values() if block.branches])


def parallel(run: RunGraph, attending: list[Branch], rest: list[Branch]) -> list[BlockSequence]:
    """Return the blocks of a model with parallel lists of parts: each begins with an attention."""
    if not attending:
        return []
    stack = BlockSequence()
    begins = {branch.add for branch in attending}
    for branch in rest:
        if branch.add in begins:
            stack.blocks.append(BlockCalls(path=None))
        if stack.blocks:
            stack.blocks[-1].branches.append(branch)
    return [stack]
