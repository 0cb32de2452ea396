"""Schedules as plain data, for YAML and JSON."""

import sys
from dataclasses import asdict, fields
from typing import TypeGuard

from .errors import InputError, did_you_mean
from .schedules import (
    EXAMPLE,
    Constant,
    Cosine,
    Curriculum,
    Early,
    Exponential,
    Late,
    Linear,
    Piecewise,
    Schedule,
    parse_schedule,
)

KINDS: dict[str, type[Schedule]] = {
    kind.__name__.lower(): kind for kind in (Constant, Linear, Cosine, Exponential, Early, Late, Curriculum)
}


def schedule_to_data(schedule: Schedule) -> float | str | dict:
    """Return the YAML form: a number, text like ``0,0.3@0.5,0``, or ``{linear: {start: 0.0, end: 0.1}}``."""
    if isinstance(schedule, Constant):
        return schedule.value
    if isinstance(schedule, Piecewise):
        return ",".join(f"{value!r}@{progress!r}" for progress, value in schedule.points)
    return {type(schedule).__name__.lower(): asdict(schedule)}


def schedule_from_data(data: float | str | dict, where: str) -> Schedule:
    """Return the schedule that a number, a compact text or a one-key mapping describes.

    Args:
        data: a number, a text for ``parse_schedule``, or for example ``{linear: {start: 0.0, end: 0.1}}``.
        where: what the schedule is for, used in error messages.

    Raises:
        InputError: for anything else; the message says what to write.
    """
    if is_number(data):
        return Constant(float(data))
    if isinstance(data, str):
        return parse_schedule(data, where)
    if not isinstance(data, dict) or len(data) != 1:
        raise InputError(f"{where} is {data!r}; write a number or {EXAMPLE}.")
    ((name, arguments),) = data.items()
    if name not in KINDS:
        raise InputError(f"{where} has the unknown schedule {name!r}.{did_you_mean(str(name), KINDS)}")
    kinds = {field.name: field.type for field in fields(KINDS[name])}
    wanted = f"{where}: schedule {name!r} takes the numbers {', '.join(kinds)}."
    if not isinstance(arguments, dict):
        raise InputError(wanted)
    for key, value in arguments.items():
        if key not in kinds:
            raise InputError(f"{where}: schedule {name!r} has no {key!r}.{did_you_mean(str(key), kinds)}")
        # Early and Late also take whether they are linear.
        if not (isinstance(value, bool) if kinds[key] is bool else is_number(value)):
            raise InputError(wanted)
    try:
        return KINDS[name](**arguments)
    except TypeError:
        raise InputError(wanted) from None


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a number that a float can hold."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max
