"""Run a model once and see every random operation: where it ran, and what it did."""

import math
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ..errors import first_line
from ..kernels.torch_internals import hooks_of_saved_tensors, inside_backward, storage_identity
from ..layers import DropoutLayer
from ..sites import KINDS
from ..sites._adapters import is_lora_dropout
from ..sites.observation.calls import Call, Calls, newly_zero
from ..sites.observation.host_random import HostRandomWatch
from ..sites.observation.inputs import call
from ..sites.observation.lineage import Lineage, Origin, first_tensor, tensors_in
from ..sites.observation.restore import unchanged
from ..sites.observation.roles import is_recurrent
from ..sites.observation.rows import has_numbers, rows_summing_to_one
from ..sites.observation.stack import ModuleStack, drops
from ._configured import configured_rate
from ._events import Event
from ._places import Trace, block_paths, kind_of, within

# Two sums of a result: equal when the masks and inputs were.
Fingerprint = tuple[float, float]
# Elements of a parameter whose gradient is not asked for where others do.
LARGE = 1_000_000


class Observer:
    """What one forward of a model showed.

    Args:
        model: the model, in the mode that it is to be seen in.
        training: which forward this is.

    Attributes:
        events: what ran, in order.
        fingerprints: of the results of the random operations, by the path where they ran.
        recomputed: the same for what ran inside a backward pass.
        called: paths of the modules that ran.
        evaluated: paths of the modules that were in evaluation mode, whatever forward this is.
        blocks: paths of the blocks.
        lineage: which tensors come from which event.
        traces: what was seen around each event.
        output: what the model returned in evaluation; in training it may hold a graph, and is let go.
        heads: for each linear layer that made an output of what a dropout left, that dropout and the shape.
        recomputable: whether something random ran where a backward pass may run it again.
    """

    def __init__(self, model: nn.Module, *, training: bool) -> None:
        self.model, self.training = model, training
        self.events: list[Event] = []
        self.fingerprints: dict[str, list[Fingerprint]] = {}
        self.recomputed: dict[str, list[Fingerprint]] = {}
        self.called: set[str] = set()
        self.evaluated: set[str] = set()
        learned = frozenset(map(storage_identity, model.parameters()))
        self.lineage = Lineage(self.note_application, learned)
        self.traces: list[Trace] = []
        self.output: Any = None
        self.heads: dict[str, tuple[int, torch.Size]] = {}
        self.recomputable = False
        self.blocks = block_paths(model)
        self.host = HostRandomWatch()
        self.stack = ModuleStack(model, modes=(Calls(self.note),), entered=self.enter, left=self.leave)

    def run(self, inputs: Any, *, backward: bool = True) -> str | None:
        """Run the model once, in training also backward, since checkpointing runs parts of it again there.

        Args:
            inputs: what the model is called with.
            backward: whether what checkpointing runs again is to be seen. Without it nothing is saved for a
                backward pass, and a model that computes gradients in its own forward fails.

        Returns:
            Why the backward pass could not be run, if it could not.
        """
        self.evaluated = {path for path, module in self.model.named_modules() if not module.training}
        forgetful = self.training and not backward
        with self.stack, torch.set_grad_enabled(self.training):
            with saved_tensors_hooks(forget, forget) if forgetful else nullcontext():
                self.hooks = hooks_of_saved_tensors()
                self.output = call(self.model, inputs)
            self.finish()
            output, self.output = self.output, None if self.training else self.output
            return self.run_backward(output) if self.training and backward else None

    def run_backward(self, output: Any) -> str | None:
        """Compute gradients of the outputs' sum, and leave ``.grad`` alone; return why that failed, if so."""
        parameters = enough_parameters(self.model, self.blocks)
        outputs = [value for value in tensors_in(output) if value.requires_grad]
        if self.events and parameters and outputs:
            try:
                total = torch.stack([value.float().sum() for value in outputs]).sum()
                torch.autograd.grad(total, parameters, allow_unused=True)
            except RuntimeError as error:
                return first_line(error)
        return None

    def note(self, this: Call, result: Any) -> None:
        """Take note of one function call."""
        path, name = self.stack.path, this.name
        number = None
        if this.drawn or this.drops_everything:
            hidden = self.training and not torch.is_grad_enabled()
            self.recomputable |= hidden or hooks_of_saved_tensors() != self.hooks
            prints = self.recomputed if inside_backward() else self.fingerprints
            after = first_tensor((result,))
            if after is not None:
                prints.setdefault(path, []).append(fingerprint(after))
            if not inside_backward():
                number = self.add(self.event(this, result), self.trace(this))
        if not inside_backward():
            # Random numbers become a dropout only by what is done with them.
            dropout = number if "dropout" in name or this.attention else None
            self.lineage.follow(name, path, this.args, this.kwargs, result, dropout, number)

    def add(self, event: Event, trace: Trace) -> int:
        """Add an event, and return its number."""
        self.events.append(event)
        self.traces.append(trace)
        return len(self.events) - 1

    def event(self, this: Call, result: Any) -> Event:
        """Describe one random operation; its kind is told when the forward has ended."""
        return Event(
            path=self.stack.path,
            kind="unknown",
            operation=this.operation,
            training=self.training,
            resolved=this.rate(),
            measured=this.dropped(result),
        )

    def trace(self, this: Call) -> Trace:
        """Return what is seen around one random operation when it runs."""
        operand = first_tensor((*this.args, *this.kwargs.values())) if "dropout" in this.name else None
        origin = None if operand is None else self.lineage.origin(operand)
        if is_recurrent(this.name):
            # It drops between its own layers.
            origin = Origin("hidden", attended=True)
        return Trace(
            module=self.stack.module,
            named=self.kind_by_name(),
            in_block=self.block_of(self.stack.path) != "",
            weights=this.attention or (this.rows is not None and this.rows > 0.9),
            shape=this.shape,
            origin=None if origin is None or origin.role == "constant" else origin,
        )

    def block_of(self, path: str) -> str:
        """Return the block that a path lies in, empty outside the blocks."""
        return next((block for block in self.blocks if within(path, block)), "")

    def kind_by_name(self) -> str | None:
        """Return the kind that the running module is named after, as `regularize_` and PEFT name layers."""
        if is_lora_dropout(self.stack.path):
            return "lora"
        name = self.stack.path.rpartition(".")[2].removesuffix("_dropout")
        return name if name in KINDS and isinstance(self.stack.module, DropoutLayer) else None

    def note_application(self, number: int, operand: Tensor, result: Any) -> None:
        """Take note that numbers which were drawn before meet the tensor that they act on."""
        trace, after = self.traces[number], first_tensor((result,))
        if trace.origin is not None or after is None:
            return
        trace.origin = self.lineage.origin(operand)
        if trace.one_per_sample and operand.numel() > math.prod(trace.shape):
            self.lineage.whole_samples.add(number)
        if after is not operand:
            rows = rows_summing_to_one(operand)
            trace.weights = rows is not None and rows > 0.9
            self.measure(number, newly_zero(operand.detach() != 0, after))

    def measure(self, number: int, dropped: float | None, *, computed: bool = False) -> None:
        """Give an event without a measurement the share of what became zero.

        Nothing zeroed is a measurement of a mask that was computed, but not of noise.
        """
        if self.events[number].measured is None:
            self.events[number] = replace(
                self.events[number], measured=dropped if computed else dropped or None
            )

    def finish(self) -> None:
        """Tell the kind of every event, and where its rate was written down, now that all has been seen."""
        self.heads = self.lineage.before_output(self.output)
        heads = {number for number, _ in self.heads.values()}
        for number, (event, trace) in enumerate(zip(self.events, self.traces, strict=True)):
            kind = kind_of(trace, number, self.lineage, before_output=number in heads)
            configured = configured_rate(trace.module, kind, event.resolved)
            if (
                configured
                and event.resolved is None
                and self.holder(event.path, configured[0]) in self.called
            ):
                # The rate of a dropout that ran by itself is not this operation's.
                configured = None
            self.events[number] = replace(
                event,
                kind=kind,
                configured=None if configured is None else configured[1],
                source=None if configured is None else f"{event.path}.{configured[0]}".lstrip("."),
            )

    def holder(self, path: str, attribute: str) -> str | None:
        """Return the path of the child that holds a rate, None where the module itself holds it."""
        child = attribute.rpartition(".")[0]
        return f"{path}.{child}".lstrip(".") if child else None

    def enter(self, path: str, inputs: tuple) -> int:
        """Take note that a module begins; return the number of the event that comes next."""
        self.note_host_random()
        self.called.add(path)
        if not self.stack.running and not inside_backward():
            self.lineage.begin(inputs)
        return len(self.events)

    def leave(self, path: str, module: nn.Module, inputs: tuple, output: Any, since: int) -> None:
        """Take note that a module ends; measure a dropout module by what went in and what came out."""
        self.note_host_random()
        before, after = first_tensor(inputs), first_tensor((output,))
        if not drops(module) or before is None or after is None or inside_backward():
            return
        dropped = newly_zero(before.detach() != 0, after)
        own = [number for number in range(since, len(self.events)) if self.events[number].path == path]
        computed = isinstance(module, DropoutLayer) and hasattr(module, "eval_mask")
        if not own and computed:
            own = [self.add_mask(path, module, before)]
        for number in own:
            self.measure(number, dropped, computed=computed)
            if self.traces[number].origin is None:
                self.traces[number].origin = self.lineage.origin(before)
                self.lineage.follow("", path, (before,), {}, after, number)

    def add_mask(self, path: str, module: nn.Module, x: Tensor) -> int:
        """Add a mask that was computed rather than drawn."""
        event = Event(
            path=path, kind="unknown", operation=type(module).__name__, training=self.training, random=False
        )
        return self.add(event, Trace(module=module, named=self.kind_by_name(), shape=tuple(x.shape)))

    def note_host_random(self) -> None:
        """Take note of numbers that the running module has drawn outside torch."""
        for name in self.host.drawn():
            if not inside_backward():
                event = Event(path=self.stack.path, kind="unknown", operation=name, training=self.training)
                self.add(event, Trace(module=self.stack.module, shape=(0, 0)))


def observe_training(model: nn.Module, inputs: Any) -> tuple[Observer, str | None]:
    """Watch a training forward, and the backward pass where that may run a part of the model again.

    What nothing is saved for takes no more memory than an evaluation, so that is tried first.

    Returns:
        What was seen, and why the backward pass could not be run, if it could not.
    """
    forward = Observer(model, training=True)
    # Whatever fails here fails again below, but for models that compute gradients in their own forward.
    with suppress(Exception), unchanged(model):
        forward.run(inputs, backward=False)
        if not forward.recomputable:
            return forward, None
    training = Observer(model, training=True)
    return training, training.run(inputs)


def forget(saved: Any) -> Any:
    """Save nothing for a backward pass that does not come."""


def enough_parameters(model: nn.Module, blocks: set[str]) -> list[nn.Parameter]:
    """Return small trained parameters whose gradients lead a backward pass through everything.

    They are the smallest of each module. A large one, whose gradient would take as much memory as it, is
    left out where others make up for it: outside the blocks, and behind the first block in one that holds a
    smaller one, since the way to the first block goes through all that come later.
    """
    smallest: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        owner = name.rpartition(".")[0]
        if parameter.requires_grad and (owner not in smallest or parameter.numel() < smallest[owner].numel()):
            smallest[owner] = parameter
    ordered = [path for path, _ in model.named_modules() if path in blocks]
    found, without = [], dict.fromkeys(ordered)
    for owner, parameter in smallest.items():
        block = next((path for path in ordered if within(owner, path)), "")
        if parameter.numel() <= LARGE or (ordered and block == ordered[0]):
            found.append(parameter)
            without.pop(block, None)
    for block in without:
        inside = [parameter for owner, parameter in smallest.items() if within(owner, block)]
        found += sorted(inside, key=Tensor.numel)[:1]
    return found or list(smallest.values())


def fingerprint(x: Tensor) -> Fingerprint:
    """Return two sums of a tensor, to tell whether another is the same."""
    if not x.numel() or not has_numbers(x):
        return 0.0, 0.0
    flat = x.detach().double().flatten().nan_to_num()
    return flat.sum().item(), flat.square().sum().item()
