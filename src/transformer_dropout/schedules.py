"""Schedules: pure functions of progress in [0, 1].

The same type serves rates over training, rates over depth and penalty weights over training.
"""

import math
from dataclasses import asdict, dataclass, fields

from .errors import InputError, did_you_mean


@dataclass(frozen=True)
class Schedule:
    """A pure function of ``progress`` in [0, 1] that returns a float."""

    def __call__(self, progress: float) -> float:
        raise NotImplementedError


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
        rate: the exponent at ``until``; 0 is refused, since that is ``Linear``.
        until: the progress, above 0, at which ``end`` is reached. It may lie beyond 1.
    """

    start: float
    end: float
    rate: float = 5.0
    until: float = 1.0

    def __post_init__(self) -> None:
        if self.rate == 0:
            raise InputError("Exponential needs a rate other than 0; for a straight line use Linear.")
        if self.until <= 0:
            raise InputError(f"Exponential needs until above 0, not {self.until}.")

    def __call__(self, progress: float) -> float:
        share = min(progress / self.until, 1.0)
        return self.start + (self.end - self.start) * math.expm1(self.rate * share) / math.expm1(self.rate)


def as_schedule(value: float | Schedule) -> Schedule:
    """Return a schedule; a plain number becomes ``Constant``."""
    if isinstance(value, Schedule):
        return value
    return Constant(float(value))


KINDS: dict[str, type[Schedule]] = {
    kind.__name__.lower(): kind for kind in (Constant, Linear, Cosine, Exponential)
}


def schedule_to_data(schedule: Schedule) -> float | dict:
    """Return the YAML form: a number for a constant, else ``{linear: {start: 0.0, end: 0.1}}``."""
    if isinstance(schedule, Constant):
        return schedule.value
    return {type(schedule).__name__.lower(): asdict(schedule)}


def schedule_from_data(data: float | dict, where: str) -> Schedule:
    """Return the schedule that a number or a one-key mapping describes.

    Args:
        data: a number, or for example ``{linear: {start: 0.0, end: 0.1}}``.
        where: what the schedule is for, used in error messages.

    Raises:
        InputError: for anything else; the message says what to write.
    """
    if isinstance(data, int | float) and not isinstance(data, bool):
        return Constant(float(data))
    if not isinstance(data, dict) or len(data) != 1:
        raise InputError(
            f"{where} is {data!r}; write a number or a schedule such as {{linear: {{start: 0.0, end: 0.1}}}}."
        )
    ((name, arguments),) = data.items()
    if name not in KINDS:
        raise InputError(f"{where} has the unknown schedule {name!r}.{did_you_mean(str(name), KINDS)}")
    known = [field.name for field in fields(KINDS[name])]
    if not isinstance(arguments, dict) or not all(isinstance(v, int | float) for v in arguments.values()):
        raise InputError(f"{where}: schedule {name!r} takes the numbers {', '.join(known)}.")
    for key in arguments:
        if key not in known:
            raise InputError(f"{where}: schedule {name!r} has no {key!r}.{did_you_mean(str(key), known)}")
    try:
        return KINDS[name](**arguments)
    except TypeError:
        raise InputError(f"{where}: schedule {name!r} takes the numbers {', '.join(known)}.") from None
