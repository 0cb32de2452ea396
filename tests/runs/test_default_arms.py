"""A task's own arms, told what the user sets, with the changes applied to all."""

from types import SimpleNamespace

import pytest

from transformer_dropout.errors import InputError
from transformer_dropout.runs import default_arms as module
from transformer_dropout.runs.default_arms import default_arms


@pytest.fixture
def asked(monkeypatch):
    """A task that notes what it is told and names two arms."""
    asked = []

    def arms(model, data):
        asked.append((model, data))
        return [{"name": "a"}, {"name": "b", "seed": 3}]

    monkeypatch.setattr(module, "find_task", lambda name: SimpleNamespace(default_arms=arms))
    return asked


def test_a_task_is_told_what_the_user_sets_of_its_sections(asked):
    changes = {"model.width": "8", "model.heads": "2", "data.source": "x.txt", "training.steps": "6"}
    first, second = default_arms("language", changes)
    assert asked == [({"width": 8, "heads": 2}, {"source": "x.txt"})]
    assert [(arm.name, arm.seed, arm.task) for arm in (first, second)] == [
        ("a", 0, "language"),
        ("b", 3, "language"),
    ]
    for arm in (first, second):
        assert (arm.model.width, arm.data.source, arm.training.steps) == (8, "x.txt", 6)
    default_arms("language", {})
    assert asked[1] == ({}, {})


def test_a_task_without_arms_asks_for_run_configs(monkeypatch):
    monkeypatch.setattr(module, "find_task", lambda name: SimpleNamespace())
    with pytest.raises(InputError, match=r"The task mine names no arms; give run configs"):
        default_arms("mine", {})
