"""Function calls that draw random numbers, with what they drew."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from ...kernels.torch_internals import schema_of
from .attention_probe import probe_attention, probe_causal_attention
from .lineage import first_tensor
from .random_operations import Drawn, RandomOperations
from .rows import has_numbers, rows_summing_to_one

SHORT_NAMES = {"torch.nn.functional.": "F.", "torch.Tensor.": "Tensor."}


@dataclass(kw_only=True)
class Call:
    """A function call, and the random operations inside it.

    Attributes:
        function, args, kwargs: the call; no function where an operation was reached by none from Python.
        drawn: what the kernels drew for it.
        attention: whether the function is an attention, which drops its weights.
        rows: for a dropout, the fraction of its input's rows that sum to 1, None where it holds no weights.
        nonzero: where its input is not zero, for a dropout.
    """

    function: Any = None
    args: tuple = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    drawn: list[Drawn] = field(default_factory=list)
    attention: bool = False
    rows: float | None = None
    nonzero: Tensor | None = None

    @property
    def name(self) -> str:
        """The bare name of the function."""
        # That of an operation ends in its overload, as dropout.default.
        return getattr(self.function, "__name__", str(self.function)).partition(".")[0]

    @property
    def operation(self) -> str:
        """The name that an event shows."""
        if self.function is None or schema_of(self.function) is not None:
            return self.drawn[0].name
        name = resolve_name(self.function) or self.name
        for long, short in SHORT_NAMES.items():
            name = name.replace(long, short)
        return name

    @property
    def drops_everything(self) -> bool:
        """Whether it is a dropout with a rate of 1, which needs no random number."""
        if "dropout" not in self.name or self.nonzero is None:
            return False
        given = (*self.args[1:], *self.kwargs.values())
        rate = self.kwargs.get("p", self.args[1] if len(self.args) > 1 else None)
        return rate == 1 and not isinstance(rate, bool) and not any(value is False for value in given[:2])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what was drawn, or of the input where nothing was."""
        if self.drawn:
            return self.drawn[0].shape
        return () if self.nonzero is None else tuple(self.nonzero.shape)

    def rate(self) -> float | None:
        """Return the probability of dropping that the kernel was given."""
        if self.drops_everything:
            return 1.0
        return next((drawn.rate for drawn in self.drawn if drawn.rate is not None), None)

    def dropped(self, result: Any) -> float | None:
        """Return the fraction that was really dropped, None where that cannot be seen."""
        seen = [(drawn.dropped, drawn.size) for drawn in self.drawn if drawn.dropped is not None]
        if seen:
            return sum(dropped * size for dropped, size in seen) / sum(size for _, size in seen)
        rate = self.rate()
        if self.name == "scaled_dot_product_attention" and rate and len(self.args) >= 3:
            options = {name: self.kwargs[name] for name in ("scale", "enable_gqa") if name in self.kwargs}
            query, key, value = self.args[:3]
            return probe_attention(query, key, value, rate, **options)
        if rate and self.attention and schema_of(self.function) is not None:
            query, key, value = self.args[:3]
            return probe_causal_attention(self.function, query, key, value, rate)
        after = first_tensor((result,))
        return None if self.nonzero is None or after is None else newly_zero(self.nonzero, after)


class Calls(TorchFunctionMode):
    """Sees every torch function called from Python while it is active, and what each draws.

    Args:
        on_call: called with ``(call, result)`` after each.
    """

    def __init__(self, on_call: Callable[[Call, Any], None]) -> None:
        super().__init__()
        self.on_call = on_call
        self.under_way: Call | None = None
        self.reporting = False
        self._draws = RandomOperations(self.drew)
        self._entered = ExitStack()

    def __enter__(self) -> "Calls":
        self._entered.enter_context(self._draws)
        return super().__enter__()

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        super().__exit__(exc_type, exc_val, exc_tb)
        self._entered.close()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        this = Call(function=func, args=args, kwargs=kwargs)
        if this.name == "__get__":
            result = func(*args, **kwargs)
            if isinstance(result, Tensor):
                # As x.T is.
                self.report(this, result)
            return result
        if "dropout" in this.name and (x := first_tensor((*args, *kwargs.values()))) is not None:
            # Now, since a dropout may work in place.
            this.rows, this.nonzero = rows_summing_to_one(x), x.detach() != 0
        elif "attention" in this.name:
            this.attention = True
        outer, self.under_way = self.under_way, this
        try:
            result = func(*args, **kwargs)
        finally:
            self.under_way = outer
        self.report(this, result)
        return result

    def report(self, this: Call, result: Any) -> None:
        """Call ``on_call``, whose own random numbers are none of the model's."""
        self.reporting = True
        try:
            self.on_call(this, result)
        finally:
            self.reporting = False

    def drew(self, drawn: Drawn) -> None:
        """Put a random operation down to the function that is under way."""
        if self.reporting:
            return
        if self.under_way is not None:
            self.under_way.drawn.append(drawn)
        else:
            self.report(Call(drawn=[drawn], attention="attention" in drawn.name), None)


def newly_zero(nonzero: Tensor, after: Tensor) -> float | None:
    """Return the fraction of the entries that were not zero and are now."""
    if nonzero.shape != after.shape or not has_numbers(after):
        return None
    total = nonzero.count_nonzero().item()
    return (nonzero & (after.detach() == 0)).count_nonzero().item() / total if total > 1 else None
