"""What the masks of one text keep: as expected, as one training forward drew them, and in evaluation."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import InputError
from ..kernels.torch_internals import inside_backward
from ..layers import DropoutLayer
from ..sites.observation.calls import Call
from ..sites.observation.inputs import arguments_for
from ..sites.observation.lineage import first_tensor, tensors_in
from ..sites.observation.restore import unchanged
from ..sites.observation.rows import rows_summing_to_one
from ..sites.observation.stack import drops
from ..surgery._attention import scaled_dot_product
from ._observe import Observer

# A number where all entries share it, else one per token and channel; nan where a zero hides what was done.
Shares = float | Tensor
# The child of an attention that `regularize_` lets act on its weights.
ON_WEIGHTS = "attention_weights_dropout"
# Dropped entries that the rate makes one expect; none at all is then no accident.
FEWEST_EXPECTED = 20


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Attention weights of one training forward, and which of them were dropped.

    Shape:
        weights, dropped: (heads, queries, keys).
    """

    weights: Tensor
    dropped: Tensor


@dataclass(frozen=True, kw_only=True)
class PlaceMasks:
    """What one place of a model keeps of a text.

    Attributes:
        path: of the module that drops; ``(path, turn)`` tells a model's places apart.
        turn: which call there, where one forward calls it several times.
        kind, operation: as of the audit's event.
        block: the path of the block around it, empty outside the blocks.
        rate: the probability of dropping, None where it is computed or not known.
        expected: the probability of keeping, None where it is not known.
        drawn: what one training forward kept.
        evaluated: what a forward in evaluation keeps; 1 where nothing drops.
        attention: for attention weights, what was dropped.
    """

    path: str
    turn: int
    kind: str
    operation: str
    block: str
    rate: float | None
    expected: Shares | None = None
    drawn: Shares = 1.0
    evaluated: Shares = 1.0
    attention: Weights | None = None


@dataclass(frozen=True, kw_only=True)
class Masks:
    """What a model's masks keep of one text.

    Attributes:
        places: everything that drops, in the order of the forward.
        unpictured: where random numbers were drawn without a mask that could be seen.
    """

    places: tuple[PlaceMasks, ...]
    unpictured: tuple[str, ...]


@dataclass(kw_only=True)
class Sight:
    """One thing that dropped in one forward, before its kind is known."""

    path: str
    turn: int
    number: int | None
    operation: str
    kind: str
    kept: Shares
    probability: Tensor | None = None
    attention: Weights | None = None


class VisibleAttention(TorchFunctionMode):
    """Computes attention that drops weights step by step, so that the weights can be seen.

    Attributes:
        last: weights before and after the last such dropout.
    """

    def __init__(self) -> None:
        super().__init__()
        self.last: tuple[Tensor, Tensor] | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention and not inside_backward():
            names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
            given: dict[str, Any] = dict(zip(names, args, strict=False)) | kwargs
            if p := given.pop("dropout_p", 0.0):
                return scaled_dot_product(partial(self.drop, p), **given)
        return func(*args, **kwargs)

    def drop(self, p: float, weights: Tensor) -> Tensor:
        """Drop weights, and remember them before and after."""
        self.last = weights, F.dropout(weights, p)
        return self.last[1]


class MaskObserver(Observer):
    """An observer that also keeps what the masks kept, entry by entry.

    Attributes:
        sights: everything that dropped, in order.
    """

    def __init__(self, model: nn.Module, *, training: bool) -> None:
        super().__init__(model, training=training)
        self.sights: list[Sight] = []
        self.turns: Counter[str] = Counter()
        self.attention = VisibleAttention()
        self.stack.modes = (self.attention, *self.stack.modes)
        self.computed: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def note(self, this: Call, result: Any) -> None:
        before = len(self.events)
        super().note(this, result)
        if len(self.events) == before or drops(self.stack.module):
            return
        self.turns[path := self.stack.path] += 1
        sight = Sight(
            path=path,
            turn=self.turns[path],
            number=before,
            operation=this.operation,
            kind="unknown",
            kept=1.0,
        )
        after = first_tensor((result,))
        if self.attention.last is not None:
            (weights, dropped), self.attention.last = self.attention.last, None
            sight.attention = weights_of(weights, (weights != 0) & (dropped == 0))
        elif this.nonzero is not None and after is not None and after.shape == this.nonzero.shape:
            operand = first_tensor((*this.args, *this.kwargs.values()))
            assert operand is not None
            dropped = this.nonzero & (after == 0)
            if this.rows is not None and this.rows > 0.9:
                sight.attention = weights_of(operand, dropped)
            else:
                sight.kept = shares(dropped, this.nonzero)
        self.sights.append(sight)

    def leave(self, path: str, module: nn.Module, inputs: tuple, output: Any, since: int) -> None:
        super().leave(path, module, inputs, output, since)
        before, after = first_tensor(inputs), first_tensor((output,))
        if not drops(module) or before is None or after is None or inside_backward():
            return
        own = [number for number in range(since, len(self.events)) if self.events[number].path == path]
        seen = self.computed.pop(module, None)
        if not own and seen is None:
            return
        self.turns[path] += 1
        sight = Sight(
            path=path,
            turn=self.turns[path],
            number=own[0] if own else None,
            operation=type(module).__name__,
            kind=self.kind_by_name() or "unknown",
            kept=1.0,
        )
        if seen is not None:
            probability, mask = (rows(values.detach().float()) for values in seen)
            sight.probability, sight.kept = probability, 1.0 if mask is None else mask
        elif before.shape == after.shape:
            sight.kept, sight.attention = kept_between(before, after, scores=acts_on_scores(module))
        self.sights.append(sight)

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Have layers that compute their masks say them, and attention show the weights that it drops."""
        for module in self.model.modules():
            if isinstance(module, DropoutLayer):
                module.observer = lambda keep, mask, module=module: self.computed.update(
                    {module: (keep, mask)}
                )
            on_weights = getattr(module, ON_WEIGHTS, None)
            if isinstance(on_weights, DropoutLayer) and hasattr(module, "attend"):
                # Else one kernel does it all. What this hides from the class is put back with the attributes.
                vars(on_weights)["is_plain_dropout"] = False
        yield

    def places(self) -> list[PlaceMasks]:
        """Return what dropped where, once the forward is over."""
        return [self.place(sight) for sight in self.sights if not self.hides_its_mask(sight)]

    def unpictured(self) -> list[str]:
        """Return what drew random numbers, or may have dropped, without a mask that could be seen."""
        return [f"{s.path or 'the model'} ({s.operation})" for s in self.sights if self.hides_its_mask(s)]

    def hides_its_mask(self, sight: Sight) -> bool:
        """Return whether nothing was dropped, although some of so many draws at that rate would have been."""
        everything = isinstance(sight.kept, float) or bool((sight.kept.nan_to_num(1.0) == 1).all())
        if sight.number is None or sight.probability is not None or sight.attention or not everything:
            return False
        rate, draws = self.events[sight.number].rate, math.prod(self.traces[sight.number].shape)
        return rate is None or rate * draws > FEWEST_EXPECTED

    def place(self, sight: Sight) -> PlaceMasks:
        """Return a place with what its event says of it."""
        event = None if sight.number is None else self.events[sight.number]
        rate = None if event is None or sight.probability is not None else event.rate
        return PlaceMasks(
            path=sight.path,
            turn=sight.turn,
            kind=sight.kind if event is None else event.kind,
            operation=sight.operation,
            block=self.block_of(sight.path),
            rate=rate,
            expected=sight.probability if rate is None else 1 - rate,
            drawn=sight.kept,
            attention=sight.attention,
        )


def acts_on_scores(module: nn.Module) -> bool:
    """Return whether a layer acts on attention's scores before their softmax."""
    return isinstance(module, DropoutLayer) and module.acts_on == "scores"


def kept_between(before: Tensor, after: Tensor, *, scores: bool) -> tuple[Shares, Weights | None]:
    """Return what was kept between a dropout's input and its result, and attention weights apart."""
    before, after = before.detach(), after.detach()
    if scores:
        # Dropped scores are as low as hidden ones.
        lowest = torch.finfo(before.dtype).min / 2
        dropped = (before > lowest) & (after <= lowest)
        return 1.0, weights_of(before.softmax(-1), dropped)
    dropped = (before != 0) & (after == 0)
    if before.dim() == 4 and (rows_summing_to_one(before) or 0) > 0.9:
        return 1.0, weights_of(before, dropped)
    return shares(dropped, before != 0), None


def weights_of(weights: Tensor, dropped: Tensor) -> Weights | None:
    """Return the weights of a batch of one by head."""
    if weights.dim() != 4 or weights.shape[0] != 1:
        return None
    return Weights(weights=weights[0].detach().float(), dropped=dropped[0])


def shares(dropped: Tensor, nonzero: Tensor) -> Shares:
    """Return 1 where an entry was kept, 0 where it was dropped, nan where it was zero before."""
    values = torch.where(nonzero, (~dropped).float(), torch.nan)
    found = rows(values)
    return float(values.nanmean().nan_to_num(1.0)) if found is None else found


def rows(values: Tensor) -> Tensor | None:
    """Return entries of a batch of one by token and channel, heads side by side; None for other shapes."""
    if values.dim() in (3, 4) and values.shape[0] == 1:
        values = values[0]
    if values.dim() == 3:
        values = values.transpose(0, 1).flatten(1)
    return values if values.dim() == 2 else None


def look(model: nn.Module, inputs: Any) -> Masks:
    """Run a model on one text, once in training and once in evaluation, and return what drops where.

    The model, its modes and the random state are put back.

    Raises:
        InputError: for inputs that are not of one text, or that the model does not take.
    """
    args, kwargs = arguments_for(model, inputs)
    for tensor in tensors_in((*args, *kwargs.values())):
        if tensor.dim() > 1 and tensor.shape[0] != 1:
            raise InputError(
                f"td.show pictures one text, and these inputs hold {tensor.shape[0]}; give a batch of one."
            )
    with unchanged(model):
        # So that moments of one training share a draw, and a page can be made again.
        torch.manual_seed(0)
        training = MaskObserver(model.train(), training=True)
        with training.asking():
            training.run(inputs)
        evaluation = MaskObserver(model.eval(), training=False)
        with evaluation.asking():
            evaluation.run(inputs)
    found = {(place.path, place.turn): place for place in training.places()}
    for place in evaluation.places():
        key = place.path, place.turn
        found[key] = replace(found.get(key, replace(place, drawn=1.0)), evaluated=place.drawn)
    unpictured = tuple(dict.fromkeys([*training.unpictured(), *evaluation.unpictured()]))
    return Masks(places=tuple(found.values()), unpictured=unpictured)
