"""Sides that take turns: the only way to time two things on a machine that others use too."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from .row import Budget, Measurement

Sides = Mapping[str, Callable[[], object]]


def seconds(action: Callable[[], object], calls: int = 1, *, cuda: bool = False) -> float:
    """Return the seconds of one call: of CPU time, or between CUDA events.

    Args:
        action: what is timed.
        calls: how often in a row, for what is too short to time alone.
        cuda: whether the work runs on a GPU.
    """
    if cuda:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            action()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / calls
    start_time = time.process_time()
    for _ in range(calls):
        action()
    return (time.process_time() - start_time) / calls


def interleaved(sides: Sides, rounds: int, calls: int = 1, *, cuda: bool = False) -> list[dict[str, float]]:
    """Time the sides in turn, so many rounds, after one round to warm up.

    The order turns around every other round, so that no side always runs on the other's warm caches.
    """
    times, names = [], list(sides)
    gc.collect()
    gc.disable()
    try:
        for number in range(rounds + 1):
            order = names if number % 2 else names[::-1]
            times.append({name: seconds(sides[name], calls, cuda=cuda) for name in order})
    finally:
        gc.enable()
    return times[1:]


def timed_ratio(
    sides: Sides,
    budget: Budget,
    *,
    over: str = "reference",
    under: str = "ours",
    calls: int = 1,
    gate: str,
    about: Mapping[str, Any],
    cuda: bool = False,
) -> Measurement:
    """Return the median over rounds of one side's time by another's, within each round.

    Args:
        sides: by name, what is timed.
        budget: how many rounds.
        over: the side whose time is divided.
        under: the side by which it is divided.
        calls: calls of a side in one round.
        gate: what was checked before, for the record.
        about: shape, dtype and settings, for the record.
        cuda: whether the work runs on a GPU.
    """
    times = interleaved(sides, budget.rounds, calls, cuda=cuda)
    ratios = tuple(round[over] / round[under] for round in times)
    return Measurement(
        value=statistics.median(ratios),
        per_round=ratios,
        seconds={name: statistics.median(round[name] for round in times) for name in sides},
        gate=gate,
        about=about,
        action=sides[under],
    )
