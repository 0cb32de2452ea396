"""What a search shows: the curve over a setting, the best that so many trials can be expected to find."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ...runs.run_config import RunConfig
from .space import Method, Range

# Width of the smoothing, as a share of what was searched.
BANDWIDTH = 0.15
RESAMPLES = 200
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One trial that ended with a value.

    Attributes:
        number: of the trial.
        values: its settings.
        value: the metric that decides, as a number of which less is better.
    """

    number: int
    values: dict[str, Any]
    value: float


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the search of one method found.

    Attributes:
        method: the method.
        tried: its trials with a value.
        pruned, failed: how many ended early, or without a value.
    """

    method: Method
    tried: tuple[Tried, ...]
    pruned: int
    failed: int

    @property
    def best(self) -> Tried:
        """The trial with the lowest value."""
        return min(self.tried, key=lambda trial: trial.value)


@dataclass(frozen=True, kw_only=True)
class SettingCurve:
    """The metric over one setting, smoothed, with the interval of its mean."""

    key: str
    at: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def found_by(method: Method, study: Any) -> Found:
    """Return what a method's study holds.

    Raises:
        InputError: when no trial of it has a value.
    """
    trials = study.get_trials(deepcopy=False)
    tried = tuple(
        Tried(number=trial.number, values=dict(trial.params), value=trial.value)
        for trial in trials
        if trial.state.name == "COMPLETE"
    )
    if not tried:
        reasons = [trial.user_attrs["reason"] for trial in trials if "reason" in trial.user_attrs]
        raise InputError(
            f"No trial of {method.arm.name!r} ended with a value: {(reasons or ['none ran'])[0]}."
        )
    counts = {state: sum(trial.state.name == state for trial in trials) for state in ("PRUNED", "FAIL")}
    return Found(method=method, tried=tried, pruned=counts["PRUNED"], failed=counts["FAIL"])


def found_by_all(methods: Sequence[Method], study_of: Callable[[str], Any]) -> tuple[list[Found], list[str]]:
    """Return what the studies hold, and a sentence for each method of which no trial has a value.

    Args:
        methods: what was searched.
        study_of: gives the study of a method's folder name.

    Raises:
        InputError: when no method has a value.
    """
    found, without = [], []
    for method in methods:
        try:
            found.append(found_by(method, study_of(method.arm.slug())))
        except InputError as error:
            without.append(str(error))
    if not found:
        raise InputError(without[0])
    return found, without


def expected_best(values: Sequence[float], k: int) -> float:
    """Return the expected lowest of ``k`` values drawn with replacement from those found.

    Formula: ``sum over i of v_(i) ((1 - (i - 1) / n)^k - (1 - i / n)^k)`` with ``v_(1) <= v_(2) <= ...``.

    Args:
        values: of n trials.
        k: how many trials.

    Paper: Dodge et al. 2019, "Show your work: improved reporting of experimental results".
    """
    ordered, n = np.sort(np.asarray(values)), len(values)
    share_left = (1 - np.arange(n + 1) / n) ** k
    return float(ordered @ (share_left[:-1] - share_left[1:]))


def curve(tried: Sequence[Tried], key: str, search: Range, points: int = 60) -> SettingCurve:
    """Return the metric over one setting: a local line through the trials, with a bootstrap interval.

    The other settings vary from trial to trial; the interval holds what that adds.

    Args:
        tried: trials with values.
        key: the setting.
        search: between what it was searched.
        points: at how many places.
    """
    scale = np.log if search.log else np.asarray
    low, high = float(scale(search.low)), float(scale(search.high))
    x = (scale(np.array([trial.values[key] for trial in tried], dtype=float)) - low) / (high - low)
    y = np.array([trial.value for trial in tried])
    grid = np.linspace(0.0, 1.0, points)
    generator = np.random.default_rng(0)
    draws = [generator.integers(len(y), size=len(y)) for _ in range(RESAMPLES)]
    lines = np.array([local_line(x[draw], y[draw], grid) for draw in draws])
    tail = 100 * (1 - CONFIDENCE) / 2
    edges = np.percentile(lines, [tail, 100 - tail], axis=0)
    at = np.array([search.at(share) for share in grid], dtype=float)
    return SettingCurve(key=key, at=at, mean=local_line(x, y, grid), low=edges[0], high=edges[1])


def local_line(x: np.ndarray, y: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Return a local linear regression with Gaussian weights, evaluated on a grid."""
    apart = grid[:, None] - x[None, :]
    weights = np.exp(-0.5 * (apart / BANDWIDTH) ** 2) + 1e-12
    total, first, second = (np.sum(weights * apart**power, axis=1) for power in (0, 1, 2))
    spread = second * total - first**2
    line = np.sum(weights * (second[:, None] - first[:, None] * apart) * y, axis=1)
    mean = np.sum(weights * y, axis=1) / total
    # Where all trials lie at one place there is no slope.
    return np.where(spread > 1e-9 * total**2, line / np.maximum(spread, 1e-300), mean)


def write_chosen(found: Sequence[Found], out: Path) -> list[Path]:
    """Write the best settings of each method as what ``dropout compare`` reads; return the files."""
    folder = out / "chosen"
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for one in found:
        arm = one.method.configured(one.best.values)
        if isinstance(arm, RunConfig):
            paths.append(folder / f"{arm.slug()}.yaml")
            paths[-1].write_text(arm.to_yaml(), encoding="utf-8")
    return paths
