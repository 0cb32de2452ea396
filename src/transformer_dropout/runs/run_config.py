"""What one run is: task, model, recipe, data, training, seed."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..recipe import Recipe
from ..yaml_file import KeyPath, dump_yaml, parse_value, read_yaml
from .arm_names import check_name, folder_name
from .dataclass_from_data import STRICT_KEYS, dataclass_from_data
from .find_task import find_task
from .sections import NEWER, to_plain
from .task import Task
from .training_config import TrainingConfig

# The version of the run config format; a file of a newer one is refused.
FORMAT = 1
DEFAULT_TASK = "language"

Places = dict[KeyPath, str]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, complete: the same config and seed give the same run.

    Attributes:
        name: the arm's name in tables.
        format: version of this file format.
        seed: of the initial weights, the data order and the masks.
        task: what is trained, as `find_task` takes it.
        model, data: the task's own sections, as its dataclasses or as the mappings that describe them.
        recipe: the regularizers, as `Recipe.from_data` reads them.
        training: optimizer, length, evaluation.
    """

    __pydantic_config__ = STRICT_KEYS

    name: str = "run"
    format: int = FORMAT
    seed: int = 0
    task: str = field(default=DEFAULT_TASK, metadata=NEWER)
    model: Any = None
    recipe: list[dict[str, Any]] = field(default_factory=list)
    data: Any = None
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        if self.format < 0:
            raise InputError(f"format is {self.format}; leave it out, or write {FORMAT}.")
        if self.format > FORMAT:
            raise InputError(
                f"The run config has format {self.format}, but this version reads up to format {FORMAT}; "
                "upgrade with: pip install --upgrade transformer-dropout"
            )
        check_name(self.name)
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}, but it lies between 0 and {2**32 - 1}.")
        Recipe.from_data(self.recipe)
        task = self.find_task()
        for name, kind in (("model", task.Model), ("data", task.Data)):
            section = getattr(self, name)
            if not isinstance(section, kind):
                # The dataclass is frozen once it is complete.
                object.__setattr__(
                    self, name, dataclass_from_data(kind, {} if section is None else section, {}, (name,))
                )
        check_terms(self.task, task, self.training)

    def find_task(self) -> Task:
        """Return the task that the config names."""
        return find_task(self.task)

    def to_data(self) -> dict[str, Any]:
        """Return the config as plain data."""
        return to_plain(self)

    def to_yaml(self) -> str:
        """Return the config as YAML text that ``load_run_config`` reads."""
        return dump_yaml(self.to_data())

    def fingerprint(self) -> str:
        """Return a short digest that differs when anything in the config does."""
        return hashlib.sha256(json.dumps(self.to_data(), sort_keys=True).encode()).hexdigest()[:16]

    def slug(self) -> str:
        """Return the name as a folder name."""
        return folder_name(self.name, "run")


def check_terms(name: str, task: Task, training: TrainingConfig) -> None:
    """Refuse terms of the loss that a task cannot have.

    Raises:
        InputError: when it has no class scores or no pre-trained weights, and a term needs them.
    """
    for key in ("label_smoothing", "rdrop"):
        if getattr(training, key) and not hasattr(task, "logits"):
            raise InputError(
                f"training.{key} needs class scores, and the task {name} gives none; take the key out, or "
                "give the task a method logits(model, batch)."
            )
    if training.label_smoothing and training.rdrop:
        raise InputError("training.label_smoothing and training.rdrop do not go together; take one out.")
    if training.token_noise and not hasattr(task, "special_tokens"):
        raise InputError(
            f"training.token_noise replaces input tokens, and the task {name} has none; take it out."
        )
    if training.experts and hasattr(task, "fresh"):
        raise InputError(
            f"training.experts draws MLPs anew, and the task {name} begins with pre-trained ones; take it "
            "out."
        )
    if training.l2_sp and not hasattr(task, "fresh"):
        raise InputError(
            f"training.l2_sp pulls to pre-trained weights, and the task {name} trains from random ones; take "
            "it out, or use training.l2."
        )


def load_run_config(path: Path, changes: Mapping[str, str] | None = None) -> RunConfig:
    """Read a run config in the project's own or in the published form.

    Args:
        path: a YAML file. A published config carries no name and takes the file's.
        changes: dotted keys of the project's form with new values as YAML text, applied last.

    Raises:
        InputError: for what does not fit; the message names file, line and the nearest known key.
    """
    file = read_yaml(path)
    data = {} if file.data is None else file.data
    if not isinstance(data, dict):
        raise InputError(
            f"{path} holds no mapping; a run config begins with keys such as 'name:' and 'model:'."
        )
    data, places = translate_config(data, file.places, path.stem.replace("_", " "))
    format = data.get("format", FORMAT)
    if isinstance(format, int) and format > FORMAT:
        # Before any other check: a newer format may have keys that this version does not know.
        return RunConfig(format=format)
    data.setdefault("name", path.stem)
    return config_from_data(data, changes or {}, places)


def translate_config(data: dict[str, Any], places: Places, name: str) -> tuple[dict[str, Any], Places]:
    """Return a run config in another form that its task knows, translated; any other as it is."""
    translate = getattr(find_task(str(data.get("task", DEFAULT_TASK))), "translate", None)
    return (data, places) if translate is None else translate(data, places, name)


def config_from_data(
    data: dict[str, Any], changes: Mapping[str, str], places: Places | None = None
) -> RunConfig:
    """Return the run config of plain data with dotted changes applied."""
    places = dict(places or {})
    for key, text in changes.items():
        set_dotted(data, key, parse_value(text))
        changed = tuple(int(part) if part.isdigit() else part for part in key.split("."))
        # The file is not where a value on the command line stands.
        places = {path: place for path, place in places.items() if path[: len(changed)] != changed}
    task = data.get("task", DEFAULT_TASK)
    if isinstance(task, str):
        found = find_task(task)
        for name, kind in (("model", found.Model), ("data", found.Data)):
            if isinstance(data.get(name), dict):
                data = {**data, name: dataclass_from_data(kind, data[name], places, (name,))}
    return dataclass_from_data(RunConfig, data, places)


def set_dotted(data: Any, dotted: str, value: Any) -> None:
    """Set ``a.b.0.c`` in nested mappings and lists, making mappings on the way.

    Raises:
        InputError: when the path leads through a value that has no keys, or past a list's end.
    """
    *parents, last = dotted.split(".")
    target = data
    for part in parents:
        target = descend(target, part, dotted)
    if isinstance(target, list):
        descend(target, last, dotted)
        target[int(last)] = value
    elif isinstance(target, dict):
        target[last] = value
    else:
        raise InputError(f"--set {dotted}: {parents[-1]!r} has no keys of its own.")


def descend(target: Any, part: str, dotted: str) -> Any:
    """Return the value at one part of a dotted key."""
    if isinstance(target, list):
        if not part.isdigit() or int(part) >= len(target):
            raise InputError(
                f"--set {dotted}: the list there has the positions 0 to {len(target) - 1}, not {part}."
            )
        return target[int(part)]
    if not isinstance(target, dict):
        raise InputError(f"--set {dotted}: there is no {part!r} to go into.")
    if target.get(part) is None:
        target[part] = {}
    return target[part]
