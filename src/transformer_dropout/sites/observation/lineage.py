"""Which dropouts a tensor comes from and what it is, followed from call to call."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Size, Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ...kernels.torch_internals import storage_identity
from .roles import ATTENTION, BRANCHES, PRODUCT, SAMPLED, SOFTMAX, SUM, Role, is_recurrent, role_after

# Calls after which a tensor still holds the same numbers, or the same up to one factor.
SAME_NUMBERS = re.compile(
    r"view|view_as|reshape|permute|transpose|contiguous|to|float|half|bfloat16|type|type_as|clone|detach"
    r"|squeeze|unsqueeze|flatten|unflatten|expand|__getitem__|__get__|index_select|select|chunk|split|unbind"
)
PRODUCTS = frozenset({"mul", "mul_", "__mul__", "__rmul__", "__imul__", "multiply"})
QUOTIENTS = frozenset({"div", "div_", "__truediv__", "__itruediv__", "true_divide"})
# Calls that set elements to another value where a mask says so.
CHOOSING = frozenset({"where", "masked_fill", "masked_fill_"})
COMPARISON = re.compile(r"_*(lt|le|gt|ge|eq|ne|less\w*|greater\w*)_*")
# Calls that give each sample a copy of what is learned: queries, latents, a token for the class.
SPREAD = frozenset({"expand", "expand_as", "repeat", "tile", "broadcast_to"})
# Additions to attention scores that leave them scores.
SHIFTED = re.compile(rf"{SUM.pattern}|masked_fill_?|where|clamp|tanh|baddbmm")
SAMPLERS = re.compile(
    r"(rand|randn|randint|bernoulli|normal|uniform|random|exponential|geometric|cauchy|log_normal|poisson)"
    r"(_like)?_?|randperm|multinomial|binomial"
)


@dataclass(frozen=True)
class Origin:
    """Where a tensor comes from.

    Attributes:
        role: what it is, None where nothing tells.
        drawn: numbers of the dropouts that it depends on.
        dropped_by: the dropout whose output it is, unchanged but for its shape, dtype and scale.
        skipped_by: the dropout of whole samples on its branch.
        summed: the same of a branch that was added to make it what it is.
        shifted: the dropout whose output it is, with something added or masked since.
        mask_of: the random operation whose numbers it is, changed by other numbers alone.
        linear: the path of the linear layer whose output it is, and the dropout that the layer's input came
            from directly.
        attended: whether it depends on an attention, or on a recurrence.
        joined: whether it depends on a residual sum.
        together: whether it is a sum of branches, without what they leave.
    """

    role: Role | None = None
    drawn: frozenset[int] = frozenset()
    dropped_by: int | None = None
    skipped_by: int | None = None
    summed: int | None = None
    shifted: int | None = None
    mask_of: int | None = None
    linear: tuple[str, int] | None = None
    attended: bool = False
    joined: bool = False
    together: bool = False


NOTHING = Origin()


class Lineage:
    """Remembers the origin of every tensor that comes from the inputs or from a random operation.

    Args:
        applied: called with ``(number, operand, result)`` where a mask of a random operation meets a tensor.
        learned: identities of the storages of the model's parameters.

    Attributes:
        batch_norms: for each path where a batch norm ran on such a tensor, the dropouts that feed it.
        softmaxes: dropouts whose output a softmax took.
        in_a_row: pairs of dropouts, of which the second took what the first had left.
        in_sums: the same of whole samples, where the second took a sum with what the first had left.
        used: dropouts whose output an attention or a recurrence mixed, or a residual stream was made of.
        joined: dropouts whose output was added, before such a use, to what does not depend on them.
    """

    def __init__(
        self,
        applied: Callable[[int, Tensor, Any], None] | None = None,
        learned: frozenset[int] = frozenset(),
    ) -> None:
        self.origins: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.applied, self.learned = applied, learned
        self.whole_samples: set[int] = set()
        self.batch_norms: dict[str, frozenset[int]] = {}
        self.softmaxes: set[int] = set()
        self.in_a_row: set[tuple[int, int]] = set()
        self.in_sums: set[tuple[int, int]] = set()
        self.used: set[int] = set()
        self.joined: set[int] = set()

    def origin(self, tensor: Any) -> Origin:
        """Return where a tensor comes from."""
        return self.origins.get(tensor, NOTHING) if isinstance(tensor, Tensor) else NOTHING

    def begin(self, inputs: Any) -> None:
        """Take note of what the model is given."""
        for value in tensors_in(inputs):
            self.origins[value] = Origin("input")

    def follow(
        self,
        name: str,
        path: str,
        args: tuple,
        kwargs: Mapping[str, Any],
        result: Any,
        number: int | None,
        drawn: int | None = None,
    ) -> None:
        """Take note of one call.

        Args:
            name: the function's name.
            path: the module that called it.
            args, kwargs: its arguments.
            result: what it returned.
            number: the dropout that it is, if it is one.
            drawn: the random operation that it is, if it is one.
        """
        operands = [value for value in tensors_in((args, kwargs)) if value in self.origins]
        if drawn is not None and SAMPLERS.fullmatch(name):
            origin = Origin(mask_of=drawn)
        elif not operands and name in SPREAD and storage_identity(args[0]) in self.learned:
            origin = Origin("embedded")
        elif number is not None and not ATTENTION.fullmatch(name):
            origin = self.origin_after_dropout(number, [self.origins[value] for value in operands])
        else:
            origin = self.origin_of_result(name, path, operands, args, result)
            if number is not None:
                origin = replace(origin, drawn=origin.drawn | {number})
        if origin != NOTHING:
            for value in tensors_in(args[:1] if name == "__setitem__" else result):
                self.origins[value] = origin

    def origin_after_dropout(self, number: int, inputs: list[Origin]) -> Origin:
        """Return the origin of what a dropout left of its input; of a constant it makes a mask."""
        before = inputs[0] if inputs else NOTHING
        if before.role == "constant":
            return Origin(mask_of=number)
        whole = number in self.whole_samples
        earlier = before.skipped_by if whole else before.dropped_by
        if earlier is not None and earlier != number and (earlier in self.whole_samples) == whole:
            self.in_a_row.add((earlier, number))
        elif whole and before.summed is not None:
            self.in_sums.add((before.summed, number))
        return Origin(
            before.role,
            drawn_by(inputs) | {number},
            dropped_by=number,
            # Behind a sum the stream itself is skipped, not the branches to come.
            skipped_by=number if whole and before.summed is None else before.skipped_by,
            shifted=number,
            attended=before.attended,
            joined=before.joined,
        )

    def origin_of_result(
        self, name: str, path: str, operands: list[Tensor], args: tuple, result: Any
    ) -> Origin:
        """Return the origin of what a function computed."""
        inputs = [self.origins[value] for value in operands]
        masks = {origin.mask_of for origin in inputs if origin.mask_of is not None}
        data = [origin for origin in inputs if origin.mask_of is None and origin.role != "constant"]
        if masks and (not data or COMPARISON.fullmatch(name)):
            return Origin(mask_of=max(masks))
        if masks and (name in PRODUCTS or name in CHOOSING):
            number = max(masks)
            if self.applied is not None:
                self.applied(number, next(v for v in operands if self.origins[v] in data), result)
            if name in PRODUCTS or fills_with_zeros(args, inputs):
                return self.origin_after_dropout(number, data)
        role = role_after(name, [origin.role for origin in inputs if origin.role is not None])
        if not data:
            return Origin(role)
        return self.passed_on(name, path, data, role, args)

    def passed_on(self, name: str, path: str, data: list[Origin], role: Role | None, args: tuple) -> Origin:
        """Return the origin of a function of tensors that are known, and note what it does with dropouts."""
        first, drawn = data[0], drawn_by(data)
        joins = SUM.fullmatch(name) is not None and len(data) > 1 and role == "stream"
        meets = PRODUCT.fullmatch(name) is not None or name == SAMPLED
        mixes = (meets and role == "mixed" and first.role != "mixed") or (
            is_recurrent(name) or ATTENTION.fullmatch(name) is not None
        )
        if name == "batch_norm" and drawn:
            self.batch_norms[path] = self.batch_norms.get(path, frozenset()) | drawn
        if SOFTMAX.fullmatch(name) and first.shifted is not None:
            self.softmaxes.add(first.shifted)
        around = frozenset.intersection(*(origin.drawn for origin in data))
        parts = data if SUM.fullmatch(name) else data[:1]
        skipped = {origin.skipped_by for origin in parts}
        # It stays a sum with a skipped branch when others are added.
        summed = [part.summed for part in parts if part.summed is not None and len(parts) > 1]
        summed += [number for number in skipped if number is not None and len(skipped) > 1]
        if mixes:
            self.used |= drawn
        if joins:
            # What a stream or an attention took earlier only comes along.
            self.joined |= drawn - around - self.used
            self.used |= around
        origin = Origin(
            role,
            drawn,
            skipped_by=None if joins or len(skipped) > 1 else first.skipped_by,
            summed=max(summed, default=None),
            attended=mixes or any(origin.attended for origin in data),
            joined=joins or any(origin.joined for origin in data),
            together=joins and BRANCHES.issuperset(origin.role for origin in data),
        )
        if SAME_NUMBERS.fullmatch(name) or (name in PRODUCTS | QUOTIENTS and scales(args)):
            return replace(first, role=role)
        if SHIFTED.fullmatch(name) and role not in ("stream", "embedded"):
            return replace(origin, shifted=first.shifted)
        if name == "linear" and first.dropped_by is not None:
            return replace(origin, linear=(path, first.dropped_by))
        if "softmax" in name:
            return replace(origin, linear=first.linear)
        return origin

    def before_output(self, output: Any) -> dict[str, tuple[int, Size]]:
        """Return the linear layers that make the model's output of what a dropout left, with its shape."""
        found = ((self.origin(value).linear, value.shape) for value in tensors_in(output))
        return {linear[0]: (linear[1], shape) for linear, shape in found if linear is not None}


def drawn_by(inputs: Iterable[Origin]) -> frozenset[int]:
    """Return the dropouts that something made of these depends on."""
    return frozenset().union(*(origin.drawn for origin in inputs))


def fills_with_zeros(args: tuple, inputs: list[Origin]) -> bool:
    """Return whether a function that chooses elements puts zeros in their place."""
    if any(origin.role == "constant" for origin in inputs):
        return True
    return any(isinstance(value, int | float) and value == 0 for value in args)


def scales(args: tuple) -> bool:
    """Return whether a product has only one factor that is more than a number."""
    return sum(isinstance(value, Tensor) and value.ndim > 0 for value in args) == 1


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and mappings."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        yield from tensors_in(tuple(values.values()))
    elif isinstance(values, tuple | list) and not isinstance(values, str):
        for value in values:
            yield from tensors_in(value)


def first_tensor(values: Iterable[Any]) -> Tensor | None:
    """Return the first tensor of some arguments."""
    return next(tensors_in(tuple(values)), None)
