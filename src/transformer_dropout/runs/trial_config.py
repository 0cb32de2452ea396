"""What one trial is: whose training it calls, with which recipe, seed and settings."""

import hashlib
import inspect
import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import recipes
from ..errors import InputError, did_you_mean
from ..recipe import Recipe
from ..yaml_file import dump_yaml, read_yaml
from .arm_names import check_name, folder_name
from .dataclass_from_data import STRICT_KEYS, dataclass_from_data
from .find_task import module_of_file

FORMAT = 1
# Files that a command names and that are small enough to be programs.
PROGRAM_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """One run whose training is the user's own, complete but for what that reads besides.

    Attributes:
        name: the arm's name in tables.
        format: version of this file format.
        seed: handed to the training.
        recipe: the regularizers, as `Recipe.from_data` reads them.
        settings: handed to the training.
        steps: how long to train, handed to it; None where it decides itself.
        metric: what is compared, as it is reported, with ``:lower`` or ``:higher`` behind a name that does
            not tell which is better; None for the first reported ``val_`` metric.
        function: ``FILE.py:NAME`` of a function of a `Trial`.
        command: a command line with ``{seed}``, ``{recipe}``, ``{out}`` and names of settings in it.
        programs: digests of the files that are called, so that runs of another version do not count.
    """

    __pydantic_config__ = STRICT_KEYS

    name: str = "trial"
    format: int = FORMAT
    seed: int = 0
    recipe: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None
    metric: str | None = None
    function: str | None = None
    command: str | None = None
    programs: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.format > FORMAT:
            raise InputError(
                f"The trial has format {self.format}, but this version reads up to format {FORMAT}; upgrade "
                "with: pip install --upgrade transformer-dropout"
            )
        check_name(self.name)
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}, but it lies between 0 and {2**32 - 1}.")
        if self.steps is not None and self.steps < 1:
            raise InputError(f"steps is {self.steps}, but it must be at least 1.")
        Recipe.from_data(self.recipe)

    def to_data(self) -> dict[str, Any]:
        """Return the config as plain data."""
        return asdict(self)

    def to_yaml(self) -> str:
        """Return the config as YAML text that `load_trial_config` reads."""
        return dump_yaml(self.to_data())

    def fingerprint(self) -> str:
        """Return a short digest that differs when anything in the config does."""
        return hashlib.sha256(json.dumps(self.to_data(), sort_keys=True).encode()).hexdigest()[:16]

    def slug(self) -> str:
        """Return the name as a folder name."""
        return folder_name(self.name, "trial")


def load_trial_config(path: Path) -> TrialConfig:
    """Read what `TrialConfig.to_yaml` wrote."""
    file = read_yaml(path)
    return dataclass_from_data(TrialConfig, file.data, file.places)


@dataclass(frozen=True, kw_only=True)
class TrialArm:
    """One arm of a comparison of trials, as a file of arms lists it.

    Attributes:
        name: in tables.
        recipe: a list of rules, or the name of a ready recipe of ``td.recipes``.
        settings: handed to the training.
    """

    __pydantic_config__ = STRICT_KEYS

    name: str
    recipe: list[dict[str, Any]] | str = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)


def load_arms(path: Path) -> list[TrialArm]:
    """Read a file of arms: a list of ``{name, recipe, settings}``.

    Raises:
        InputError: for anything else.
    """
    file = read_yaml(path)
    if not isinstance(file.data, list) or not file.data:
        raise InputError(f"{path} holds no list of arms; write - {{name: ..., recipe: [...]}} for each.")
    return [checked_arm(arm, number, file.places, path) for number, arm in enumerate(file.data)]


def checked_arm(arm: Any, number: int, places: dict, path: Path | None = None) -> TrialArm:
    """Return one arm of plain data."""
    if not isinstance(arm, Mapping):
        raise InputError(f"{f'{path}: ' if path else ''}arm {number + 1} is no mapping with a name: {arm!r}.")
    inside = {key[1:]: place for key, place in places.items() if key[:1] == (number,)}
    return dataclass_from_data(TrialArm, dict(arm), inside)


def rules_of(recipe: Any) -> list[dict[str, Any]]:
    """Return the rules of a recipe, of rules as plain data, or of a ready recipe's name.

    Raises:
        InputError: for what is none of these.
    """
    if isinstance(recipe, Recipe):
        return recipe.to_data()
    if not isinstance(recipe, str):
        return Recipe.from_data(recipe or []).to_data()
    ready = {
        name: make
        for name, make in inspect.getmembers(recipes, inspect.isfunction)
        if make.__module__ == recipes.__name__
        and all(p.default is not p.empty for p in inspect.signature(make).parameters.values())
    }
    if recipe not in ready:
        raise InputError(
            f"There is no ready recipe {recipe!r}.{did_you_mean(recipe, ready)} There are: "
            f"{', '.join(sorted(ready))}; anything else is a list of rules."
        )
    return ready[recipe]().to_data()


def find_function(text: str) -> Any:
    """Return the function that ``FILE.py:NAME`` names.

    Raises:
        InputError: when there is none.
    """
    place, _, name = text.rpartition(":")
    if not place.endswith(".py") or not name:
        raise InputError(f"{text!r} names no function; write FILE.py:NAME, such as finetune.py:train.")
    if not Path(place).is_file():
        raise InputError(f"There is no file {place}; write FILE.py:NAME, such as finetune.py:train.")
    module = module_of_file(Path(place))
    function = getattr(module, name, None)
    if not callable(function):
        named = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise InputError(f"{place} has no function {name!r}.{did_you_mean(name, named)}")
    return function


def place_of(function: Any) -> str:
    """Return ``FILE.py:NAME`` of a function, by which another process finds it.

    Raises:
        InputError: when it does not stand at the top of a file.
    """
    try:
        source = inspect.getsourcefile(inspect.unwrap(function))
    except (TypeError, OSError):
        # Of what is built in, of a partial, and of what is no function there is no file.
        source = None
    name = getattr(function, "__qualname__", "")
    if source is None or not Path(source).is_file() or not name.isidentifier():
        raise InputError(
            "Every run is a process of its own, which finds the training function in a file: write it at the "
            "top of a file, such as train.py, and pass td.compare(train.train, ...)."
        )
    return f"{Path(source).resolve()}:{name}"


def digests(paths: list[Path]) -> dict[str, str]:
    """Return a short digest of each file."""
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in paths}


def programs_in(command: str) -> list[Path]:
    """Return the files that a command names and that may be programs."""
    named = [Path(word) for word in split_command(command) if "{" not in word]
    return [path.resolve() for path in named if path.is_file() and path.stat().st_size <= PROGRAM_BYTES]


def split_command(command: str) -> list[str]:
    """Return the words of a command line.

    Raises:
        InputError: when its quotes do not close.
    """
    try:
        return shlex.split(command)
    except ValueError as error:
        raise InputError(f"--run {command!r}: {str(error).lower()}.") from None
