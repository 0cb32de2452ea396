"""Run a model once and see every random operation: where it ran, and what it did."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import DropoutLayer
from ..layers._base import inside_backward
from ..sites import KINDS
from ..sites.observation.calls import Call, Calls, newly_zero
from ..sites.observation.host_random import HostRandomWatch
from ..sites.observation.inputs import call
from ..sites.observation.lineage import Lineage, first_tensor, tensors_in
from ..sites.observation.stack import ModuleStack, drops
from ._configured import configured_rate
from ._events import Event
from ._places import ATTENTION, Places

# Two sums of a result: equal when the masks and inputs were.
Fingerprint = tuple[float, float]


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
        lineage: which tensors come from which event.
        output: what the model returned.
    """

    def __init__(self, model: nn.Module, *, training: bool) -> None:
        self.model, self.training = model, training
        self.events: list[Event] = []
        self.fingerprints: dict[str, list[Fingerprint]] = {}
        self.recomputed: dict[str, list[Fingerprint]] = {}
        self.called: set[str] = set()
        self.evaluated: set[str] = set()
        self.lineage = Lineage()
        self.output: Any = None
        self.places = Places(model)
        self.host = HostRandomWatch()
        self.stack = ModuleStack(model, modes=(Calls(self.note),), entered=self.enter, left=self.leave)

    def run(self, inputs: Any) -> str | None:
        """Run the model once, in training also backward, since checkpointing runs parts of it again there.

        Returns:
            Why the backward pass could not be run, if it could not.
        """
        self.evaluated = {path for path, module in self.model.named_modules() if not module.training}
        if not self.training:
            with self.stack, torch.no_grad():
                self.output = call(self.model, inputs)
            return None
        with self.stack, torch.enable_grad():
            self.output = call(self.model, inputs)
            try:
                self.run_backward()
            except RuntimeError as error:
                return str(error).splitlines()[0]
        return None

    def run_backward(self) -> None:
        """Compute the gradients of the outputs' sum, and leave ``.grad`` alone."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        outputs = [value for value in tensors_in(self.output) if value.requires_grad]
        if self.events and parameters and outputs:
            total = torch.stack([value.float().sum() for value in outputs]).sum()
            torch.autograd.grad(total, parameters, allow_unused=True)

    def note(self, this: Call, result: Any) -> None:
        """Take note of one function call."""
        path = self.stack.path
        number = None
        if this.drawn or this.drops_everything:
            prints = self.recomputed if inside_backward() else self.fingerprints
            after = first_tensor((result,))
            if after is not None:
                prints.setdefault(path, []).append(fingerprint(after))
            if not inside_backward():
                number = len(self.events)
                self.events.append(self.event(this, result))
        if not inside_backward():
            # Random numbers become a dropout only by what is done with them; the module's end tells.
            dropout = number if number is not None and ("dropout" in this.name or this.attention) else None
            self.lineage.follow(this.name, path, this.args, this.kwargs, result, dropout)

    def event(self, this: Call, result: Any) -> Event:
        """Describe one random operation."""
        path, resolved = self.stack.path, this.rate()
        shape = this.shape
        kind = self.kind(weights=self.acts_on_weights(this), shape=shape)
        configured = configured_rate(self.stack.module, kind, resolved)
        return Event(
            path=path,
            kind=kind,
            operation=this.operation,
            training=self.training,
            configured=None if configured is None else configured[1],
            source=None if configured is None else f"{path}.{configured[0]}".lstrip("."),
            resolved=resolved,
            measured=this.dropped(result),
        )

    def kind(self, *, weights: bool, shape: tuple[int, ...]) -> str:
        """Return the kind of site that the innermost module acts on."""
        # A layer that `regularize_` placed is named after its kind.
        named = self.stack.path.rpartition(".")[2].removesuffix("_dropout")
        if named in KINDS and isinstance(self.stack.module, DropoutLayer):
            return named
        return self.places.kind(self.stack.path, self.stack.owner, weights=weights, shape=shape)

    def acts_on_weights(self, this: Call) -> bool:
        """Say whether a call drops attention weights."""
        if this.attention or this.rows is None:
            return this.attention
        return this.rows > 0.9 or ATTENTION.search(self.stack.owner.rpartition(".")[2]) is not None

    def enter(self, path: str, inputs: tuple) -> int:
        """Take note that a module begins; return the number of the event that comes next."""
        self.note_host_random()
        self.called.add(path)
        self.places.enter(path, inputs)
        return len(self.events)

    def leave(self, path: str, module: nn.Module, inputs: tuple, output: Any, since: int) -> None:
        """Take note that a module ends; measure a dropout module by what went in and what came out."""
        self.note_host_random()
        if not drops(module):
            self.places.leave(path)
            return
        before, after = first_tensor(inputs), first_tensor((output,))
        if before is None or after is None or inside_backward():
            return
        dropped = newly_zero(before.detach() != 0, after)
        own = [number for number in range(since, len(self.events)) if self.events[number].path == path]
        computes_mask = isinstance(module, DropoutLayer) and hasattr(module, "eval_mask")
        if not own and computes_mask:
            own = [len(self.events)]
            self.events.append(self.mask_event(path, module, before))
        for number in own:
            if self.events[number].measured is None:
                # Nothing zeroed is a measurement of a mask, but not of noise.
                measured = dropped if computes_mask else dropped or None
                self.events[number] = replace(self.events[number], measured=measured)
            self.lineage.follow("", path, (before,), {}, after, number)

    def note_host_random(self) -> None:
        """Take note of numbers that the running module has drawn outside torch."""
        for name in self.host.drawn():
            if not inside_backward():
                event = Event(path=self.stack.path, kind="unknown", operation=name, training=self.training)
                self.events.append(event)

    def mask_event(self, path: str, module: nn.Module, x: Tensor) -> Event:
        """Describe a mask that was computed rather than drawn."""
        kind = self.kind(weights=False, shape=tuple(x.shape))
        return Event(
            path=path, kind=kind, operation=type(module).__name__, training=self.training, random=False
        )


def fingerprint(x: Tensor) -> Fingerprint:
    """Return two sums of a tensor, to tell whether another is the same."""
    if not x.numel() or x.device.type == "meta":
        return 0.0, 0.0
    flat = x.detach().double().flatten().nan_to_num()
    return flat.sum().item(), flat.square().sum().item()
