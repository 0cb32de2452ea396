"""Schedules: pure functions of progress in [0, 1].

The same type serves rates over training, rates over depth and penalty weights over training.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass

from .errors import InputError

LARGEST_EXPONENT = 700


@dataclass(frozen=True)
class Schedule:
    """A pure function of ``progress`` in [0, 1] that returns a float."""

    def __call__(self, progress: float) -> float:
        raise NotImplementedError

    def bounds(self) -> tuple[float, float]:
        """Return the least and the greatest value; a schedule that turns nowhere has them at its ends.

        Where an end is no number, neither is either of the two.
        """
        ends = self(0.0), self(1.0)
        return (math.nan, math.nan) if any(map(math.isnan, ends)) else (min(ends), max(ends))


@dataclass(frozen=True)
class Constant(Schedule):
    """``value`` at every progress."""

    value: float

    def __call__(self, progress: float) -> float:
        return self.value


@dataclass(frozen=True)
class Linear(Schedule):
    """A straight line: ``start + (end - start) * t``."""

    start: float
    end: float

    def __call__(self, progress: float) -> float:
        return self.start + (self.end - self.start) * progress


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine wave: ``end + (start - end) * (1 + cos(pi t)) / 2``."""

    start: float
    end: float

    def __call__(self, progress: float) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class Exponential(Schedule):
    """``start + (end - start) * expm1(rate s) / expm1(rate)`` with ``s = min(t / until, 1)``.

    A positive ``rate`` changes little early and much late, a negative one the other way round.

    Args:
        start: the value at progress 0.
        end: the value from progress ``until`` on.
        rate: the exponent at ``until``, at most 700; 0 is refused, since that is ``Linear``.
        until: the progress, above 0, at which ``end`` is reached. It may lie beyond 1.
    """

    start: float
    end: float
    rate: float = 5.0
    until: float = 1.0

    def __post_init__(self) -> None:
        if self.rate == 0:
            raise InputError("Exponential needs a rate other than 0; for a straight line use Linear.")
        if not self.rate <= LARGEST_EXPONENT:
            raise InputError(
                f"Exponential has the rate {self.rate}; beyond {LARGEST_EXPONENT} no float goes."
            )
        if not self.until > 0:
            raise InputError(f"Exponential needs until above 0, not {self.until}.")

    def __call__(self, progress: float) -> float:
        share = min(progress / self.until, 1.0)
        return self.start + (self.end - self.start) * math.expm1(self.rate * share) / math.expm1(self.rate)


@dataclass(frozen=True)
class Piecewise(Schedule):
    """Straight lines between points; level before the first point and after the last.

    Two points at the same progress make a step, and there the later one holds.

    Args:
        points: at least two pairs ``(progress, value)``, in the order of progress.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        points = tuple((float(progress), float(value)) for progress, value in self.points)
        object.__setattr__(self, "points", points)
        if len(points) < 2:
            raise InputError("A piecewise schedule has at least two points, such as ((0, 0.3), (1, 0)).")
        places = [progress for progress, _ in points]
        if not all(0 <= place <= 1 for place in places) or places != sorted(places):
            listing = ", ".join(map(str, places))
            raise InputError(f"The points lie at {listing}, but progress runs from 0 to 1 and never back.")
        if not all(math.isfinite(value) for _, value in points):
            raise InputError("A point has a value that is not finite.")

    def __call__(self, progress: float) -> float:
        following = bisect_right(self.points, progress, key=lambda point: point[0])
        if following in (0, len(self.points)):
            return self.points[-1 if following else 0][1]
        (left, start), (right, end) = self.points[following - 1], self.points[following]
        share = (progress - left) / (right - left)
        # The middle of the three, since a rounding error may carry the line past its ends.
        return sorted((start, start + share * (end - start), end))[1]

    def bounds(self) -> tuple[float, float]:
        """Return the least and the greatest value of the points."""
        values = [value for _, value in self.points]
        return min(values), max(values)


@dataclass(frozen=True)
class Early(Schedule):
    """``p`` at first, 0 from progress ``until`` on; it helps models that underfit.

    Formula: ``p`` for ``t < until``, or ``p (1 - t / until)`` when linear; 0 for ``t >= until``.

    Args:
        p: the value at progress 0.
        until: the progress, above 0 and at most 1, at which it ends.
        linear: whether it falls in a straight line instead of staying at ``p``.

    Paper: Liu et al. 2023, "Dropout reduces underfitting", which uses the linear form.
    """

    p: float
    until: float
    linear: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.until <= 1:
            raise InputError(f"Early ends at a progress above 0 and at most 1, not at until={self.until}.")

    def __call__(self, progress: float) -> float:
        if progress >= self.until:
            return 0.0
        return self.p * (1 - progress / self.until) if self.linear else self.p


@dataclass(frozen=True)
class Late(Schedule):
    """0 at first, ``p`` from progress ``start`` on; it helps models that overfit.

    Formula: 0 for ``t < start``; then ``p``, or ``p (t - start) / (1 - start)`` when linear.

    Args:
        p: the value at progress 1.
        start: the progress, at least 0 and below 1, at which it begins.
        linear: whether it rises in a straight line instead of jumping to ``p``. The paper only jumps.

    Paper: Liu et al. 2023, "Dropout reduces underfitting".
    """

    p: float
    start: float
    linear: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.start < 1:
            raise InputError(f"Late begins at a progress from 0 to below 1, not at start={self.start}.")

    def __call__(self, progress: float) -> float:
        if progress < self.start:
            return 0.0
        return self.p * ((progress - self.start) / (1 - self.start)) if self.linear else self.p


@dataclass(frozen=True)
class Curriculum(Schedule):
    """From 0 towards ``p``, quickly at first: ``p (1 - exp(-gamma t))``.

    Args:
        p: the value that is approached; at progress 1 it is reached but for the share ``exp(-gamma)``.
        gamma: how quickly, above 0. The paper's 10 / (number of steps) is 10 in units of progress.

    Paper: Morerio et al. 2017, "Curriculum dropout".
    """

    p: float
    gamma: float = 10.0

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise InputError(f"Curriculum needs gamma above 0, not {self.gamma}; the paper's is 10.")

    def __call__(self, progress: float) -> float:
        return -self.p * math.expm1(-self.gamma * progress)


@dataclass(frozen=True, kw_only=True)
class Feedback:
    """Moves a rate with the gap between validation and training loss, instead of with progress.

    Formula: ``rate + gain * ((validation loss - training loss) - gap)``, kept within ``[low, high]``.

    The rate rises while the model overfits by more than ``gap`` and falls while it overfits by less. It
    depends on what was measured, so it is no ``Schedule``: a loop calls it after each evaluation.
    Both losses are those in evaluation mode, or the rate's own effect is taken for underfitting::

        rate = 0.1
        for epoch in range(epochs):
            train(model)
            rate = feedback.next_rate(rate, mean_loss(model, probe), mean_loss(model, validation))
            reg.update({"mlp_output": rate})

    Args:
        gap: the gap in nats at which the rate stays.
        gain: by how much the rate moves at one evaluation for each nat of difference.
        low: the least rate.
        high: the greatest rate.

    Raises:
        InputError: for bounds that are not 0 <= low <= high <= 1, a gain that is not above 0, or a gap that
            is not finite.
    """

    gap: float = 0.0
    gain: float = 0.1
    low: float = 0.0
    high: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise InputError(
                f"Feedback has low={self.low} and high={self.high}; write 0 <= low <= high <= 1."
            )
        if not (self.gain > 0 and math.isfinite(self.gain)):
            raise InputError(f"Feedback needs a gain above 0, not {self.gain}.")
        if not math.isfinite(self.gap):
            raise InputError(f"Feedback needs a finite gap, not {self.gap}.")

    def next_rate(self, current: float, train_loss: float, val_loss: float) -> float:
        """Return the rate that follows ``current``.

        Args:
            current: the rate so far.
            train_loss: mean training loss in evaluation mode, in nats.
            val_loss: mean validation loss, in nats. If the gap is no number, the rate stays.
        """
        error = val_loss - train_loss - self.gap
        moved = current if math.isnan(error) else current + self.gain * error
        return min(max(moved, self.low), self.high)


def parse_schedule(text: str, where: str = "The schedule") -> Piecewise:
    """Return the piecewise schedule that a compact text such as ``0,0@0.2,0.3@0.5,0`` describes.

    It lists at least two points for ``Piecewise``, each ``VALUE@PROGRESS``; the first is at 0 and the last at
    1 unless they say otherwise. The example stays at 0 until 0.2, rises to 0.3 at 0.5 and falls back to 0.

    Args:
        text: the points.
        where: what the schedule is for, used in error messages.

    Raises:
        InputError: for any other text; the message says what is wrong and what to write.
    """
    items = [item.strip() for item in text.split(",")]
    try:
        points = [_point(item, index, len(items)) for index, item in enumerate(items)]
        return Piecewise(tuple(points))
    except InputError as error:
        raise InputError(f"{where} is {text!r}; write a number or {EXAMPLE}: {error}") from None


EXAMPLE = "a schedule such as {linear: {start: 0.0, end: 0.1}} or '0,0@0.2,0.3@0.5,0'"


def _point(item: str, index: int, count: int) -> tuple[float, float]:
    """Return progress and value of one item of the compact text."""
    value, at, progress = item.partition("@")
    if not at and 0 < index < count - 1:
        raise InputError(
            f"{item!r} lies between the first and the last, so it needs its progress, VALUE@PROGRESS."
        )
    try:
        return float(progress) if at else float(index > 0), float(value)
    except ValueError:
        raise InputError(f"{item!r} is not VALUE@PROGRESS in numbers.") from None


def as_schedule(value: float | str | Schedule) -> Schedule:
    """Return a schedule; a plain number becomes ``Constant``, a text is read by ``parse_schedule``."""
    if isinstance(value, Schedule):
        return value
    if isinstance(value, str):
        return parse_schedule(value)
    try:
        return Constant(float(value))
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{value!r:.60} is no schedule; write a number or {EXAMPLE}.") from None
