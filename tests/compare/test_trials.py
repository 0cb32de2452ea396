"""Arms of the user's own training: how they are written, what is refused, and what a comparison adds."""

import json
import sys

import pytest

import transformer_dropout as td
from transformer_dropout.compare.cells import make_cells
from transformer_dropout.compare.trials import TRIALS, check_pairs, trial_configs
from transformer_dropout.errors import InputError
from transformer_dropout.runs.listener import Listener
from transformer_dropout.runs.record import read_run
from transformer_dropout.runs.run_trial import run_trial
from transformer_dropout.runs.trial_config import load_arms

RULE = {"select": "mlp_output", "layer": "Dropout", "p": 0.1}
CODE = """
def train(trial):
    start = 5.0 + trial.settings.get("off", 0.0)
    if not trial.settings.get("silent"):
        trial.report(step=0, val_loss=start)
    trial.report(step=1, val_loss=4.0 + 0.1 * len(trial.recipe.rules) + 0.01 * trial.seed)
"""


@pytest.fixture
def place(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(CODE)
    return f"{file}:train"


def test_arms_are_recipes_by_name_or_a_list(place):
    recipe = td.Recipe.from_data([RULE])
    configs = trial_configs({"a": recipe, "b": [RULE], "c": "gpt2", "d": []}, function=place, steps=3)
    assert [config.name for config in configs] == ["a", "b", "c", "d"]
    assert configs[0].recipe == configs[1].recipe == recipe.to_data()
    assert configs[2].recipe == td.recipes.gpt2().to_data()
    assert {config.steps for config in configs} == {3}
    listed = [{"name": "a", "recipe": recipe, "settings": {"lr": 1.0}}, {"name": "b"}]
    configs = trial_configs(listed, function=place, settings={"lr": 2.0, "width": 3})
    assert [config.settings for config in configs] == [{"lr": 1.0, "width": 3}, {"lr": 2.0, "width": 3}]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no list of arms"),
        ("name: a", "holds no list of arms"),
        ("- a", "arm 1 is no mapping with a name"),
        ("- {recipe: []}", "'name' is missing"),
        ("- {name: a, recipes: []}", "unknown key 'recipes'"),
        ("- {name: a, settings: 3}", "settings is 3"),
        ("- {name: 3}", "name is 3"),
    ],
)
def test_a_file_that_lists_no_arms_is_refused(tmp_path, text, words):
    path = tmp_path / "arms.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        load_arms(path)


@pytest.mark.parametrize(
    ("arms", "function", "words"),
    [
        ({}, "mine.py:train", "There are no arms"),
        ({"a": "limma"}, "mine.py:train", r"no ready recipe 'limma'.*lima.*anything else is a list of rules"),
        ({"a": "learned"}, "mine.py:train", "no ready recipe 'learned'"),
        ({"a": [{"select": "mlp_output"}]}, "mine.py:train", "layer"),
        ({"a": []}, "mine.py:trian", r"has no function 'trian'.*train"),
        ({"a": []}, "other.py:train", r"There is no file other\.py"),
        ({"a": []}, "mine:train", r"write FILE\.py:NAME"),
    ],
)
def test_what_cannot_be_found_is_told(place, tmp_path, monkeypatch, arms, function, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        trial_configs(arms, function=function)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("", "names no command"),
        ("python train.py", "without {seed} in the command all seeds"),
        ("python train.py {seed}", "the command takes no {recipe}"),
        ("python train.py {seed} {recipe} {lr}", "nobody fills {lr}"),
        ("python train.py {seed} {recipe", "write {{ and }} for braces"),
        ("python 'train.py {seed} {recipe}", "no closing quotation"),
    ],
)
def test_a_command_that_cannot_tell_runs_apart_is_refused(command, words):
    with pytest.raises(InputError) as caught:
        trial_configs({"a": [RULE]}, command=command)
    assert words in str(caught.value)


def test_another_version_of_a_program_is_another_run(tmp_path, place):
    (tmp_path / "train.py").write_text("print(1)")
    command = f"python {tmp_path / 'train.py'} {{seed}}"
    for key, value in (("function", place), ("command", command)):
        before = trial_configs({"a": []}, **{key: value})[0]
        assert list(before.programs) == [
            value.split(":")[0] if key == "function" else str(tmp_path / "train.py")
        ]
        for file in before.programs:
            with open(file, "a") as program:
                program.write("\n")
        assert trial_configs({"a": []}, **{key: value})[0].fingerprint() != before.fingerprint()


@pytest.mark.parametrize(
    ("settings", "paired"), [({}, True), ({"off": 1e-9}, False), ({"silent": True}, None)]
)
def test_whether_the_arms_of_a_seed_began_alike_is_recorded(place, tmp_path, settings, paired):
    arms = [{"name": "a"}, {"name": "b", "recipe": [RULE], "settings": settings}]
    cells = make_cells(trial_configs(arms, function=place), [0, 1], tmp_path, module=TRIALS)
    for cell in cells:
        run_trial(cell.config, cell.folder, Listener())
    check_pairs(cells)
    assert {read_run(cell.folder)["checks"]["paired_start"] for cell in cells} == {paired}
    assert all(cell.finished for cell in cells)


def test_functions_without_a_file_are_refused(tmp_path):
    for function in (lambda trial: None, print, 3):
        with pytest.raises(InputError, match="write it at the top of a file"):
            td.compare(function, arms={"a": []}, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_comparison_in_python_is_written_and_read(place, tmp_path, environment, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    arms = {"none": [], "dropout": [RULE]}
    comparison = td.compare(place, arms=arms, seeds=2, out=tmp_path / "out", on="local:2")
    assert comparison.arms == ("none", "dropout")
    losses = [run.section("result")["val_loss"] for run in comparison.of("dropout")]
    assert losses == pytest.approx([4.1, 4.11])
    assert (tmp_path / "out" / "report.html").is_file()
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["seeds"] == [0, 1]
    with pytest.raises(InputError, match="'dropout' is set up differently"):
        td.compare(place, arms={"dropout": []}, seeds=2, out=tmp_path / "out")
    with pytest.raises(InputError, match="The reference 'x' is no arm"):
        td.compare(place, arms=arms, out=tmp_path / "two", reference="x")
    assert not (tmp_path / "two").exists()
