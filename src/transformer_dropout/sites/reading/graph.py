"""What one forward computed from what: every call of a torch function, and every module around it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from .._written_rates import written_name
from ..observation.calls import Call, Calls
from ..observation.inputs import call
from ..observation.lineage import tensors_in
from ..observation.roles import MADE, RECURRENT
from ..observation.stack import ModuleStack


@dataclass(kw_only=True)
class Node:
    """One call of a function, or a tensor that came into the model.

    Attributes:
        index: its number in the order of the run.
        name: the function's bare name; ``input`` for a tensor that came in.
        call: number of the innermost module call around it.
        sources: nodes that its tensors come from.
        operands: for each tensor argument in order, its node (None for a constant), and its shape.
        parameters: how many arguments are parameters of the model.
        numbers: the plain numbers among its arguments.
        shape: of its first result.
        drawn: shapes of the random numbers it drew.
        written: the name of the rate that stands in the code for it, as far as one does.
        before: nodes that it depends on, itself too, as the bits of a number.
        real: whether its result holds floating-point numbers, not indices.
    """

    index: int
    name: str
    call: int
    sources: tuple[int, ...] = ()
    operands: tuple[tuple[int | None, tuple[int, ...]], ...] = ()
    parameters: int = 0
    numbers: tuple[float, ...] = ()
    shape: tuple[int, ...] = ()
    drawn: tuple[tuple[int, ...], ...] = ()
    written: str | None = None
    before: int = 0
    real: bool = True


@dataclass(kw_only=True)
class ModuleCall:
    """One call of a module.

    Attributes:
        index: its number in the order of the run; that of the model itself is 0.
        path: the module's path.
        module: the module.
        around: the numbers of the calls that it lies in, from the outside in, its own last.
        begin, end: the first node inside it, and the first after it.
        inputs: nodes of the tensors it was given, in order.
        outputs: nodes of the tensors it returned, in order.
        shapes: of both.
        takes_tensor: whether the first thing that it was given is a tensor.
        plain: how many tensors it returned as they are, in a tuple or alone, before anything else.
    """

    index: int
    path: str
    module: nn.Module
    around: tuple[int, ...]
    begin: int
    end: int = -1
    inputs: tuple[int | None, ...] = ()
    outputs: tuple[int | None, ...] = ()
    shapes: tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]] = ((), ())
    takes_tensor: bool = False
    plain: int = 0

    def holds(self, node: int) -> bool:
        """Return whether a node ran inside this call."""
        return self.begin <= node < self.end


@dataclass(kw_only=True)
class RunGraph:
    """One observed forward.

    Attributes:
        model: the model.
        nodes: everything that was computed, in order.
        calls: every call of a module, in order.
        tensors: the results of nodes that were kept: candidates for residual sums.
        outputs: nodes of what the model returned.
        given: the nodes of what the model was given, as bits.
    """

    model: nn.Module
    nodes: list[Node] = field(default_factory=list)
    calls: list[ModuleCall] = field(default_factory=list)
    tensors: dict[int, Tensor] = field(default_factory=dict)
    outputs: tuple[int | None, ...] = ()
    given: int = 0

    @cached_property
    def returning(self) -> dict[int, list[ModuleCall]]:
        """The module calls by the node of what they returned first, once the run is over."""
        found: dict[int, list[ModuleCall]] = {}
        for each in self.calls:
            if each.outputs and each.outputs[0] is not None:
                found.setdefault(each.outputs[0], []).append(each)
        return found

    def path(self, node: int) -> str:
        """Return the path of the innermost module that a node ran in."""
        return self.calls[self.nodes[node].call].path

    def depends(self, node: int, source: int) -> bool:
        """Return whether one node depends on another, or is it."""
        return bool(self.nodes[node].before >> source & 1)

    def is_activation(self, node: int) -> bool:
        """Return whether a node depends on what the model was given, rather than on its weights alone."""
        return bool(self.nodes[node].before & self.given)

    def activations(self, node: Node) -> list[int]:
        """Return the nodes among a node's operands that depend on what the model was given."""
        found = (source for source, _ in node.operands if source is not None)
        return [source for source in dict.fromkeys(found) if self.is_activation(source)]

    def is_linear(self, node: Node) -> bool:
        """Return whether a node multiplies an activation with a weight."""
        return node.name in LINEAR or (node.name in PRODUCTS and len(self.activations(node)) == 1)


MUTATING = frozenset(
    {"__setitem__", "__iadd__", "__imul__", "__isub__", "__itruediv__", "__iand__", "__ior__"}
)


class Recorder:
    """Builds the graph of a run while a model runs."""

    def __init__(self, model: nn.Module) -> None:
        self.run = RunGraph(model=model)
        self.stack = ModuleStack(model, modes=(Calls(self.note),), entered=self.enter, left=self.leave)
        self._nodes: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._constants: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._writers: dict[int, int] = {}
        self._parameters = {id(parameter) for parameter in model.parameters()}
        self._open: list[ModuleCall] = []

    def record(self, inputs: Any) -> RunGraph:
        """Run the model once, and return the graph."""
        with self.stack, torch.enable_grad():
            output = call(self.run.model, inputs)
        self.run.outputs = tuple(self.node_of(value) for value in tensors_in(output))
        self._nodes.clear()
        return self.run

    def node_of(self, value: Tensor) -> int | None:
        """Return the node that a tensor's present value comes from; None for a constant."""
        found = self._nodes.get(value)
        written = self._writers.get(storage_of(value))
        if written is not None and (found is None or written > found):
            return written
        return found

    def add(self, name: str, **facts: Any) -> Node:
        """Add a node."""
        index = len(self.run.nodes)
        node = Node(index=index, name=name, call=self._open[-1].index if self._open else 0, **facts)
        node.before = 1 << index
        for source in node.sources:
            node.before |= self.run.nodes[source].before
        self.run.nodes.append(node)
        return node

    def note(self, this: Call, result: Any) -> None:
        """Take note of one function call."""
        values = list(tensors_in((this.args, this.kwargs)))
        results = list(tensors_in(result))
        target = values[0] if values and mutates(this) else None
        if not results and target is None:
            return
        operands = tuple(
            (None if id(v) in self._parameters else self.node_of(v), tuple(v.shape)) for v in values
        )
        sources = tuple(dict.fromkeys(node for node, _ in operands if node is not None))
        if MADE.fullmatch(this.name) or this.name.endswith("_like"):
            # Of what it is given it takes the shape alone.
            operands = sources = ()
        drawn = tuple(drawn.shape for drawn in this.drawn)
        if not sources and not drawn and not any(id(value) in self._parameters for value in values):
            # Made of constants alone: positions, masks.
            for value in results:
                self._constants[value] = True
            return
        first = results[0] if results else target
        assert first is not None
        node = self.add(
            this.name.partition(".")[0],
            sources=sources,
            operands=operands,
            parameters=sum(id(value) in self._parameters for value in values),
            numbers=tuple(v for v in (*this.args, *this.kwargs.values()) if type(v) in (int, float)),
            shape=tuple(first.shape),
            drawn=drawn,
            written=written_name(this.function, this.rate()) if drawn else None,
            real=first.is_floating_point(),
        )
        if target is not None:
            # What it held is gone.
            self.run.tensors.pop(self._nodes.get(target, -1), None)
        for value in [*results, *([] if target is None else [target])]:
            self._nodes[value] = node.index
        if target is not None:
            self._writers[storage_of(target)] = node.index
        elif storage_of(first) in self._writers and not shares(first, values):
            # Memory that was freed and given out again.
            del self._writers[storage_of(first)]
        if first.is_floating_point() and first.ndim > 2:
            self.run.tensors[node.index] = first

    def enter(self, path: str, inputs: tuple) -> ModuleCall:
        """Take note that a module begins."""
        tensors = list(tensors_in(inputs))
        if not self._open:
            for value in tensors:
                if self._nodes.get(value) is None:
                    node = self.add("input", shape=tuple(value.shape))
                    self.run.given |= node.before
                    self._nodes[value] = node.index
        around = (*self._open[-1].around, len(self.run.calls)) if self._open else (len(self.run.calls),)
        begun = ModuleCall(
            index=len(self.run.calls),
            path=path,
            module=self.stack.model.get_submodule(path),
            around=around,
            begin=len(self.run.nodes),
            inputs=tuple(self.node_of(value) for value in tensors),
            shapes=(tuple(tuple(value.shape) for value in tensors), ()),
            takes_tensor=isinstance(next(iter(inputs), None), Tensor),
        )
        self.run.calls.append(begun)
        self._open.append(begun)
        return begun

    def leave(self, path: str, module: nn.Module, inputs: tuple, output: Any, begun: ModuleCall) -> None:
        """Take note that a module ends; what it did unseen hangs on what it was given."""
        tensors = list(tensors_in(output))
        given = tuple(dict.fromkeys(node for node in begun.inputs if node is not None))
        for value in tensors:
            unseen = self.node_of(value) is None and value not in self._constants
            if unseen and given and value.is_floating_point():
                operands = tuple((node, self.run.nodes[node].shape) for node in given)
                name = "linear" if is_packed_linear(module) else "unseen"
                node = self.add(name, sources=given, operands=operands, shape=tuple(value.shape))
                self._nodes[value] = node.index
        begun.end = len(self.run.nodes)
        begun.outputs = tuple(self.node_of(value) for value in tensors)
        begun.shapes = (begun.shapes[0], tuple(tuple(value.shape) for value in tensors))
        parts = output if isinstance(output, tuple | list) else (output,)
        begun.plain = len(list(takewhile(lambda part: isinstance(part, Tensor), parts)))
        self._open.remove(begun)


SUMS = frozenset({"add", "__add__", "__radd__", "__iadd__", "add_", "addcmul", "__sub__"})
PRODUCTS = frozenset({"matmul", "__matmul__", "__rmatmul__", "bmm", "baddbmm", "einsum", "mm", "tensordot"})
LINEAR = RECURRENT | {"linear", "addmm", "conv1d", "conv2d", "conv3d", "bilinear", "linear_dynamic"}


def is_packed_linear(module: nn.Module) -> bool:
    """Return whether a module is a linear layer whose weights are no parameters, as a quantised one is."""
    sized = hasattr(module, "in_features") and hasattr(module, "out_features")
    return sized and next(module.parameters(), None) is None


def mutates(this: Call) -> bool:
    """Return whether a call changes its first tensor."""
    name = this.name
    return name in MUTATING or (name.endswith("_") and not name.endswith("__"))


def storage_of(value: Tensor) -> int:
    """Return what tells a tensor's memory from that of others."""
    try:
        return value.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return id(value)


def shares(first: Tensor, values: list[Tensor]) -> bool:
    """Return whether a tensor lies in the memory of one of some others."""
    return any(storage_of(first) == storage_of(value) for value in values)


def bits(number: int) -> Iterator[int]:
    """Yield the places of the ones in a number, the lowest first."""
    while number:
        low = number & -number
        yield low.bit_length() - 1
        number ^= low
