"""One row of the table of timings: what is measured, and what it should reach."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Path = Literal["pure", "native", "gpu"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much may be measured.

    Attributes:
        rounds: how often the sides take turns, after one turn to warm up.
        quick: smaller shapes, so that the whole table takes minutes.
    """

    rounds: int = 7
    quick: bool = False


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one row gave.

    Attributes:
        value: median over rounds of the ratio within a round, or a count of bytes.
        per_round: the ratios of all rounds.
        seconds: median CPU seconds of one call of each side.
        gate: what was checked before timing, and by how much the sides differed.
        about: shape, dtype and settings, as plain data.
        action: one call of the side that should be fast, to be profiled when it is not.
    """

    value: float
    per_round: tuple[float, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    gate: str
    about: Mapping[str, Any] = field(default_factory=dict)
    action: Callable[[], object] | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table.

    Attributes:
        name: what is compared, as ``reference / ours``.
        path: which of our implementations: PyTorch alone, with the native extra, or on a GPU. A "pure" row
            is measured inside ``pure_pytorch()``.
        target: what the value should reach.
        at_least: whether the value should be at least the target, or at most.
        unit: "x" for a ratio, "bytes" for bytes per element.
        measure: measures it.
        obstacle: what is in the way of a better ratio, told beside a profile.
    """

    name: str
    path: Path
    target: float
    at_least: bool = True
    unit: Literal["x", "bytes"] = "x"
    measure: Callable[[Budget], Measurement]
    obstacle: str = ""

    def met(self, value: float) -> bool:
        """Return whether a value reaches the target."""
        return value >= self.target if self.at_least else value <= self.target


def each_path(targets: Mapping[Path, float], **shared: Any) -> tuple[Row, ...]:
    """Return a row for each path, with its target and what all of them share."""
    return tuple(Row(path=path, target=target, **shared) for path, target in targets.items())
