"""From the end of a branch to the module at which a layer can act there."""

from collections import Counter
from dataclasses import dataclass, replace

from torch import nn

from .._block import calls_interface
from .._site import Access, Kind, Site
from ..observation.stack import is_dropout_module
from .branches import AttentionNodes, Tail
from .graph import RECURRENT, ModuleCall, RunGraph
from .random import Draw

TORCH_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A module at which a tensor passes, and the rates at which the model itself drops that tensor."""

    node: int
    path: str
    access: Access
    width: int | None
    rates: tuple[str, ...] = ()
    streams: tuple[int, ...] = (0,)

    def site(self, kind: Kind, **where: object) -> Site:
        """Return the site of this place."""
        facts: dict = {"found": "run", **where}
        return Site(
            path=self.path,
            kind=kind,
            access=self.access,
            width=None if kind == "attention_weights" else self.width,
            rate=next(iter(self.rates), None),
            silences=self.rates[1:],
            streams=self.streams,
            **facts,
        )


class Passages:
    """Finds the modules at which the values of a run pass.

    Args:
        run: the run.
        draws: its random operations.

    Attributes:
        taken: the draws that a place stands for.
        kinds: of the values at the ends of branches and of what their last products are given, what they are.
    """

    def __init__(self, run: RunGraph, draws: list[Draw]) -> None:
        self.run, self.draws = run, draws
        self.taken: set[int] = set()
        self.kinds: dict[int, Kind] = {}
        self._times = Counter(call.path for call in run.calls)

    def at(
        self, tail: Tail, *, within: ModuleCall | None = None, outermost: bool = False, once: int = 1
    ) -> Passage | None:
        """Return where a layer can act on one of a tail's values: the model's own dropout, else a module.

        Args:
            tail: the values.
            within: the module call that the place must lie in, if there is one.
            outermost: whether of several modules that return a value the outermost is named.
            once: how often a module runs that has one place only: as often as the block.
        """
        own = self._acting_on(tail)
        # A module that runs at several places serves where all are of one kind, and nothing else does.
        for alike in (False, True):
            place = self._at_own(tail, own, once, alike) or self._at_output(
                tail, own, within, outermost, once, alike
            )
            if place is not None:
                self.taken |= {draw.node for draw in own if draw.rate is not None}
                return place
        return None

    def _at_own(self, tail: Tail, own: list[Draw], once: int, alike: bool) -> Passage | None:
        """Return the model's own dropout of a tail's values, or what stands empty in its place."""
        rates = rates_of(own)
        for draw in own:
            if (
                draw.module is not None
                and self._serves_once(draw.module, once, alike)
                and draw.rate is not None
            ):
                return self._at_dropout(draw, rates)
        return None if own else self._empty_dropout(tail, once)

    def _at_output(
        self,
        tail: Tail,
        own: list[Draw],
        within: ModuleCall | None,
        outermost: bool,
        once: int,
        alike: bool,
    ) -> Passage | None:
        """Return the module whose output is one of a tail's values."""
        found = None
        # Of experts not the flattened tokens, where the same are to be had as sequences.
        order = len(self.run.nodes[tail.values[-1]].shape) if tail.values else 0
        # Where the model drops itself, a layer is to act on the same value.
        dropped = min((draw.acts for draw in own if draw.rate is not None), default=None)
        values = tail.values if dropped is None else [v for v in tail.values if v < dropped][::-1]
        values = values or tail.values
        whole = [value for value in values if len(self.run.nodes[value].shape) == order]
        for value in [*whole, *values, *tail.values]:
            calls = [
                call for call in self.run.returning.get(value, ()) if self._serves(call, within, once, alike)
            ]
            if calls:
                found = calls[0 if outermost else -1]
                break
        if found is None:
            return None
        assert found.outputs[0] is not None
        return Passage(
            node=found.outputs[0],
            path=found.path,
            access="output",
            width=width_of(found.shapes[1][0], found.module),
            rates=rates_of(own),
        )

    def before(self, call: ModuleCall, tail: Tail, once: int = 1) -> Passage | None:
        """Return where a layer can act on what a module is given: the model's own dropout, else its input."""
        own = self._acting_on(tail)
        # A whole model that multiplies by weights of its own is given something else.
        whole = call.index == 0 and call.inputs[:1] != tuple(tail.values[-1:])
        hooked = call.takes_tensor and call.inputs[:1] != (None,) and not whole
        for alike in (False, True):
            place = self._at_own(tail, own, once, alike)
            if place is None and hooked and self._serves_once(call.path, once, alike):
                place = Passage(
                    node=tail.values[-1],
                    path=call.path,
                    access="input",
                    width=width_of(call.shapes[0][0], call.module),
                    rates=rates_of(own),
                )
            if place is not None:
                self.taken |= {draw.node for draw in own if draw.rate is not None}
                return place
        return None

    def _acting_on(self, tail: Tail) -> list[Draw]:
        """Return the random operations that drop one of a tail's values."""
        return [
            draw
            for draw in self.draws
            if draw.acts in tail.values and not (draw.whole or draw.attention or draw.name in RECURRENT)
        ]

    def serves_alike(self, draw: Draw) -> bool:
        """Return whether a dropout of the model's own drops at several places of one kind."""
        return (
            draw.module is not None
            and self._times[draw.module] > 1
            and self._serves_once(draw.module, 1, True)
        )

    def own(self, draw: Draw) -> Passage:
        """Return the place of a random operation that no tail leads to."""
        self.taken.add(draw.node)
        rates = () if draw.rate is None else (draw.rate,)
        runs = 0 if draw.module is None or draw.rate is None else self._times[draw.module]
        alone = runs == 1 or (runs > 1 and self.serves_alike(draw))
        # Of what is made of weights alone, as positions are, only the rate can be set.
        if alone and not draw.whole and self.run.is_activation(draw.node):
            return self._at_dropout(draw, rates)
        unreached = self.unreached(draw)
        return unreached if draw.rate is None else replace(unreached, access="rate")

    def unreached(self, draw: Draw) -> Passage:
        """Return the place of a random operation at which no layer can act, though its rate may be known."""
        rates = () if draw.rate is None else (draw.rate,)
        return Passage(node=draw.node, path=draw.module or draw.path, access="none", width=None, rates=rates)

    def drops(self, attention: AttentionNodes) -> list[Draw]:
        """Return the random operations on the weights of an attention that no place has yet."""
        run = self.run
        return [
            draw
            for draw in self.draws
            if draw.node not in self.taken
            and (
                draw.node == attention.weights
                or (run.depends(attention.product, draw.acts) and run.depends(draw.acts, attention.weights))
            )
        ]

    def weights(self, attention: AttentionNodes) -> Passage | None:
        """Return where an attention drops its weights."""
        run, own = self.run, self.drops(attention)
        self.taken |= {draw.node for draw in own}
        path = self._reader(attention.product)
        rates = tuple(dict.fromkeys(draw.rate for draw in own if draw.rate is not None))
        module = run.model.get_submodule(path)
        if calls_interface(module):
            return Passage(node=attention.weights, path=path, access="attention", width=None, rates=rates)
        for draw in own:
            if (
                draw.module is not None
                and draw.rate is not None
                and self._times[draw.module] == self._times[path]
            ):
                return Passage(node=draw.acts, path=draw.module, access="module", width=None, rates=rates[1:])
        if rates:
            return Passage(node=attention.weights, path=path, access="rate", width=None, rates=rates)
        tail = Tail(values=list(range(attention.weights, attention.product)))
        return self._empty_dropout(tail, self._times[path])

    def _reader(self, node: int) -> str:
        """Return the path of the module, no dropout, whose code made a node."""
        around = self.run.calls[self.run.nodes[node].call].around
        calls = (self.run.calls[number] for number in reversed(around))
        return next(
            call.path for call in calls if not is_dropout_module(call.module) and not is_activation(call)
        )

    def _at_dropout(self, draw: Draw, rates: tuple[str, ...]) -> Passage:
        assert draw.module is not None and draw.rate is not None
        others = tuple(rate for rate in rates if rate != draw.rate)
        shape = self.run.nodes[draw.acts].shape
        # In evaluation torch's layers take a fused path around their modules, unless one has a hook.
        if isinstance(self.run.model.get_submodule(draw.module.rpartition(".")[0]), TORCH_LAYERS):
            rates = (draw.rate, *others)
            return Passage(node=draw.acts, path=draw.module, access="output", width=shape[-1], rates=rates)
        return Passage(node=draw.acts, path=draw.module, access="module", width=shape[-1], rates=others)

    def _serves_once(self, path: str, once: int, alike: bool) -> bool:
        """Return whether a module runs as often as it should, or what it returns is of one kind each time."""
        if not alike:
            return self._times[path] == once
        calls = (call for call in self.run.calls if call.path == path)
        kinds = {self.kinds.get(value) for call in calls for value in call.outputs[:1] if value is not None}
        return len(kinds) == 1 and None not in kinds

    def _empty_dropout(self, tail: Tail, once: int) -> Passage | None:
        """Return an ``nn.Identity`` that stands where a dropout would."""
        for value in tail.values:
            for call in self.run.returning.get(value, ()):
                name = call.path.rpartition(".")[2].lower()
                named = "drop" in name and "path" not in name
                if isinstance(call.module, nn.Identity) and named and self._times[call.path] == once:
                    width = call.shapes[1][0][-1]
                    return Passage(node=value, path=call.path, access="module", width=width)
        return None

    def _serves(self, call: ModuleCall, within: ModuleCall | None, once: int, alike: bool) -> bool:
        """Return whether a hook on a module's output acts at one place only, or at several of one kind."""
        if not self._serves_once(call.path, once, alike) or is_dropout_module(call.module) or call.index == 0:
            return False
        if not call.plain:
            return False
        if call.outputs[0] is None or not self.run.nodes[call.outputs[0]].real:
            return False
        # A list would call a layer that is put into it.
        if isinstance(call.module, nn.Identity | nn.Sequential):
            return False
        return within is None or (within.index in call.around and call.index != within.index)


def is_activation(call: ModuleCall) -> bool:
    """Return whether a module call is a softmax of its own."""
    return isinstance(call.module, nn.Softmax)


def rates_of(draws: list[Draw]) -> tuple[str, ...]:
    """Return the rates that some random operations read."""
    return tuple(dict.fromkeys(draw.rate for draw in draws if draw.rate is not None))


def width_of(shape: tuple[int, ...], module: nn.Module) -> int | None:
    """Return the channels of a tensor that a module is given or returns."""
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.modules.batchnorm._NormBase):
        return shape[1] if len(shape) > 1 else None
    return shape[-1] if shape else None
