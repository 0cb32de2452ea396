"""The arms that a task compares when none are given."""

from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from ..yaml_file import parse_value
from .find_task import find_task
from .run_config import RunConfig, config_from_data, set_dotted


def default_arms(task: str, changes: Mapping[str, str]) -> list[RunConfig]:
    """Return a task's own arms with dotted changes applied to all.

    Args:
        task: as `find_task` takes it.
        changes: dotted keys with new values as YAML text.

    Raises:
        InputError: when the task has no arms of its own, or a change does not fit.
    """
    arms = getattr(find_task(task), "default_arms", None)
    if arms is None:
        raise InputError(f"The task {task} names no arms; give run configs: dropout compare a.yaml b.yaml")
    set_by_user: dict[str, Any] = {"model": {}, "data": {}}
    for key, text in changes.items():
        if key.split(".")[0] in set_by_user:
            set_dotted(set_by_user, key, parse_value(text))
    made = arms(set_by_user["model"], set_by_user["data"])
    return [config_from_data({"task": task, **arm}, changes) for arm in made]
