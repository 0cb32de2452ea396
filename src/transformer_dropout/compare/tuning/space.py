"""Spaces: which keys of a method's config are searched, and between what."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ...errors import InputError, did_you_mean
from ...runs.run_config import RunConfig, config_from_data, set_dotted
from ...runs.training_config import TrainingConfig
from ...yaml_file import read_yaml
from ..cells import CellConfig

# All rules of a recipe at once: ``recipe.*.p``.
EVERY_RULE = "recipe.*."
# A file has settings and methods, or is a sweep with parameters.
KEYS = ("parameters", "settings", "methods")


@dataclass(frozen=True, kw_only=True)
class Range:
    """A number between two others.

    Attributes:
        low, high: its ends, both included.
        log: whether equal ratios are equally likely, and not equal differences.
        whole: whether it is a whole number.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def at(self, share: float) -> float | int:
        """Return the number that lies so far, from 0 to 1, between the ends."""
        low, high = float(self.low), float(self.high)
        value = low * (high / low) ** share if self.log else low + (high - low) * share
        return round(value) if self.whole else value


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of several values."""

    values: tuple[Any, ...]

    def at(self, share: float) -> Any:
        """Return the value that lies so far, from 0 to 1, along the list."""
        return self.values[min(len(self.values) - 1, int(share * len(self.values)))]


Search = Range | Choice
Settings = dict[str, Search]


@dataclass(frozen=True, kw_only=True)
class Method:
    """An arm with the settings that are searched for it.

    Attributes:
        arm: what is run where nothing is searched.
        settings: by dotted key of its config, between what.
    """

    arm: CellConfig
    settings: Settings

    def configured(self, values: Mapping[str, Any]) -> CellConfig:
        """Return the arm with some values set.

        Raises:
            InputError: when a value does not fit.
        """
        if isinstance(self.arm, RunConfig):
            data = self.arm.to_data()
            set_all(data, values)
            return config_from_data(data, {})
        # A training of the user's own: what is no part of the recipe is one of its settings.
        own = self.arm.to_data()  # type: ignore[attr-defined]
        inside = {key: value for key, value in values.items() if key.startswith("recipe.")}
        set_all(own, inside)
        settings = own["settings"] | {key: value for key, value in values.items() if key not in inside}
        return replace(self.arm, recipe=own["recipe"], settings=settings)  # type: ignore[call-arg]


def set_all(data: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Set values by dotted key in a config's plain data."""
    for key, value in values.items():
        for one in keys_of(key, len(data["recipe"])):
            set_dotted(data, one, value)


def keys_of(key: str, rules: int) -> list[str]:
    """Return a key, or one for every rule of the recipe where it stands for all."""
    if not key.startswith(EVERY_RULE):
        return [key]
    return [f"recipe.{rule}.{key.removeprefix(EVERY_RULE)}" for rule in range(rules)]


SHARED: Settings = {
    "training.lr": Range(low=3e-4, high=1e-2, log=True),
    "training.weight_decay": Range(low=0.03, high=3.0, log=True),
}
RATE = Range(low=0.0, high=0.5)


def default_methods(arms: Sequence[CellConfig]) -> list[Method]:
    """Return a method for each arm: learning rate and weight decay for all, and the rate where there is one.

    Raises:
        InputError: when the arms are no run configs, whose keys nobody here knows.
    """
    methods = []
    for arm in arms:
        if not isinstance(arm, RunConfig):
            raise InputError("Say what is to be searched: --space space.yaml; docs/tuning.md shows one.")
        fixed = isinstance(arm.training.lr, int | float)
        settings = {key: search for key, search in SHARED.items() if fixed or key != "training.lr"}
        if arm.recipe and all("p" in rule for rule in arm.recipe):
            settings[f"{EVERY_RULE}p"] = RATE
        methods.append(Method(arm=arm, settings=settings))
    return methods


def read_methods(path: Path, arms: Sequence[CellConfig]) -> list[Method]:
    """Return the methods of a space's file.

    ``settings`` are searched for every method; ``methods`` names arms, each with settings of its own beside
    them, and leaves the other arms out. A sweep of W&B (``method``, ``parameters``) is read as well.

    Args:
        path: a YAML file.
        arms: those that there are.

    Raises:
        InputError: for what is no space, or an arm that there is not.
    """
    data = read_yaml(path).data
    if not isinstance(data, dict):
        raise InputError(
            f"{path} holds no mapping; a space begins with 'settings:'. docs/tuning.md shows one."
        )
    for key in KEYS:
        if not isinstance(data.get(key), dict | None):
            raise InputError(f"{path}: {key} is {data[key]!r}; it is a mapping. docs/tuning.md shows one.")
    methods = (
        swept(path, data["parameters"], arms) if "parameters" in data else methods_from_data(path, data, arms)
    )
    for method in methods:
        if not method.settings:
            raise InputError(f"{path}: nothing is searched for {method.arm.name!r}; give it a setting.")
    return methods


def swept(path: Path, parameters: Mapping[str, Any] | None, arms: Sequence[CellConfig]) -> list[Method]:
    """Return the methods of a W&B sweep: every arm, with the same settings."""
    shared = {swept_key(key): of_sweep(path, key, entry) for key, entry in (parameters or {}).items()}
    return [Method(arm=arm, settings=shared) for arm in arms]


def methods_from_data(path: Path, data: Mapping[str, Any], arms: Sequence[CellConfig]) -> list[Method]:
    """Return the methods of a space in our own form."""
    unknown = [key for key in data if key not in KEYS]
    if unknown:
        raise InputError(f"{path}: unknown key {unknown[0]!r}.{did_you_mean(str(unknown[0]), KEYS)}")
    shared = settings_of(path, data.get("settings") or {})
    chosen = data.get("methods") or {arm.name: {} for arm in arms}
    known = {arm.name: arm for arm in arms}
    methods = []
    for name, entry in chosen.items():
        if name not in known:
            raise InputError(f"{path}: there is no arm {name!r}.{did_you_mean(str(name), known)}")
        methods.append(Method(arm=known[name], settings=shared | settings_of(path, entry or {})))
    return methods


def refuse_values(methods: Sequence[Method]) -> None:
    """Refuse values that a method's config cannot take, before anything is searched.

    Each value of a list and both ends of each range are tried, with the others at the same end.

    Raises:
        InputError: for the first that does not fit.
    """
    for method in methods:
        ends = [{key: search.at(share) for key, search in method.settings.items()} for share in (0.0, 1.0)]
        others = [
            ends[0] | {key: value}
            for key, search in method.settings.items()
            if isinstance(search, Choice)
            for value in search.values
        ]
        for values in (*ends, *others):
            method.configured(values)


def settings_of(path: Path, data: Any) -> Settings:
    """Return what is searched, by key."""
    if not isinstance(data, dict):
        raise InputError(f"{path}: settings are a mapping from a key to {{low: ..., high: ...}}.")
    return {str(key): search_of(path, str(key), entry) for key, entry in data.items()}


def search_of(path: Path, key: str, entry: Any) -> Search:
    """Return what one key is searched between.

    Raises:
        InputError: for ends that are no numbers or the wrong way round, or an empty list.
    """
    if isinstance(entry, list):
        entry = {"values": entry}
    if (
        isinstance(entry, dict)
        and set(entry) == {"values"}
        and isinstance(entry["values"], list)
        and entry["values"]
    ):
        return Choice(values=tuple(entry["values"]))
    numbers = isinstance(entry, dict) and all(
        isinstance(entry.get(end), int | float) and not isinstance(entry.get(end), bool)
        for end in ("low", "high")
    )
    if not numbers or set(entry) - {"low", "high", "log"}:
        raise InputError(
            f"{path}: {key} is {{low: 0.0, high: 0.5}}, with log: true where ratios count, or a list of "
            "values."
        )
    low, high, log = entry["low"], entry["high"], entry.get("log", False)
    if not low < high or (log and low <= 0) or not isinstance(log, bool):
        raise InputError(
            f"{path}: {key} goes from {low} to {high}; low is below high, and above 0 with log: true."
        )
    whole = isinstance(low, int) and isinstance(high, int)
    return Range(low=low, high=high, log=log, whole=whole)


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def swept_key(key: str) -> str:
    """Return the key of a run config that a sweep's parameter means: ``lr`` is ``training.lr``."""
    return f"training.{key}" if key in {field.name for field in fields(TrainingConfig)} else key


def of_sweep(path: Path, key: str, entry: Any) -> Search:
    """Return what a parameter of a W&B sweep is searched between."""
    if not isinstance(entry, dict):
        raise InputError(f"{path}: the parameter {key} has no values, and no min and max.")
    if "value" in entry:
        return Choice(values=(entry["value"],))
    if "values" in entry:
        return search_of(path, key, {"values": entry["values"]})
    log = "log" in str(entry.get("distribution", ""))
    return search_of(path, key, {"low": entry.get("min"), "high": entry.get("max"), "log": log})
