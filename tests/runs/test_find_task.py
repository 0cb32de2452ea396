"""Tasks by name: the package's, a module's, a file's; and what is refused."""

import sys

import pytest

from transformer_dropout.errors import InputError
from transformer_dropout.runs.find_task import find_task
from transformer_dropout.tasks.language import Language

ONE = """
from dataclasses import dataclass

@dataclass(frozen=True, kw_only=True)
class Settings:
    width: int = 4

class {name}:
    item, metrics, Model, Data = "row", (), Settings, Settings
    prepare = build = batch = loss = score = None
"""


def written(path, *names):
    path.write_text("".join(ONE.format(name=name) for name in names))
    return path


def test_the_packages_own_are_known_by_one_word():
    assert isinstance(find_task("language"), Language)
    assert isinstance(find_task("transformer_dropout.tasks.language:Language"), Language)


def test_a_file_is_found_by_its_path_whatever_it_is_called(tmp_path):
    # The name of a module that everybody has.
    assert type(find_task(str(written(tmp_path / "random.py", "Mine")))).__name__ == "Mine"
    import random

    assert random.random() < 1


def test_of_several_tasks_one_is_named(tmp_path):
    path = written(tmp_path / "two.py", "First", "Second")
    with pytest.raises(InputError, match=r"holds 2 tasks \(First, Second\); name one: .*two.py:NAME"):
        find_task(str(path))
    assert type(find_task(f"{path}:Second")).__name__ == "Second"
    with pytest.raises(InputError, match=r"has no class 'Secnd'. Did you mean 'Second'"):
        find_task(f"{path}:Secnd")
    with pytest.raises(InputError, match="is no task: it lacks item, metrics"):
        find_task(f"{path}:Settings")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("langauge", "There is no task 'langauge'. Did you mean 'language'"),
        ("nowhere/my_task.py", "There is no file nowhere/my_task.py"),
        ("no_such_package.task", "cannot be imported: No module named 'no_such_package'"),
        ("transformer_dropout.errors", r"holds 0 tasks \(none\)"),
    ],
)
def test_what_is_no_task_is_refused(name, message):
    with pytest.raises(InputError, match=message):
        find_task(name)


def test_a_file_that_does_not_run_is_one_sentence(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("import no_such_module\n")
    with pytest.raises(InputError, match=r"broken.py cannot be imported: No module named 'no_such_module'"):
        find_task(str(path))
    path.write_text("def f(:\n")
    with pytest.raises(InputError, match=r"broken.py cannot be imported: .*line 1"):
        find_task(str(path))


def test_modules_beside_the_user_are_found_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    (tmp_path / "beside_me").mkdir()
    written(tmp_path / "beside_me" / "task.py", "Mine")
    assert type(find_task("beside_me.task")).__name__ == "Mine"
    assert sys.path[0] == "" and sys.path.count("") == 1
    with pytest.raises(InputError, match="cannot be imported"):
        find_task("beside_me.other")
    assert sys.path.count("") == 1
