"""Spaces: what is read, what is refused, and how a value reaches the config it is meant for."""

import pytest

from transformer_dropout.compare.tuning.space import Choice, Range, default_methods, read_methods
from transformer_dropout.errors import InputError
from transformer_dropout.runs.default_arms import default_arms


@pytest.fixture(scope="module")
def arms():
    return default_arms("language", {})


def read(tmp_path, text, arms):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return {method.arm.name: method for method in read_methods(path, arms)}


def test_without_a_file_every_arm_is_searched_alike_and_its_rate_besides(arms):
    methods = {method.arm.name: method for method in default_methods(arms)}
    assert set(methods["none"].settings) == {"training.lr", "training.weight_decay"}
    assert set(methods["dropout p=0.1"].settings) == {"training.lr", "training.weight_decay", "recipe.*.p"}
    assert "recipe.*.p" not in methods["LearnedDropout"].settings


def test_one_rate_reaches_every_rule(arms):
    method = next(m for m in default_methods(arms) if m.arm.name == "dropout p=0.1")
    config = method.configured({"recipe.*.p": 0.25, "training.lr": 1e-3})
    assert [rule["p"] for rule in config.recipe] == [0.25] * 4
    assert config.training.lr == 1e-3
    assert method.arm.recipe[0]["p"] == 0.1


def test_a_space_names_methods_and_shares_settings(tmp_path, arms):
    text = """
settings:
  training.lr: {low: 1e-4, high: 1e-2, log: true}
methods:
  none:
  dropout p=0.1: {recipe.0.p: {low: 0.0, high: 0.3}, model.blocks: {low: 1, high: 3}, training.batch: [8, 16]}
"""
    methods = read(tmp_path, text, arms)
    assert list(methods) == ["none", "dropout p=0.1"]
    settings = methods["dropout p=0.1"].settings
    assert settings["training.lr"] == Range(low=1e-4, high=1e-2, log=True)
    assert settings["model.blocks"].whole and settings["training.batch"] == Choice(values=(8, 16))
    assert settings["training.lr"].at(0.5) == pytest.approx(1e-3)
    assert [settings["model.blocks"].at(share) for share in (0.0, 0.5, 1.0)] == [1, 2, 3]
    assert [settings["training.batch"].at(share) for share in (0.0, 0.49, 0.51, 1.0)] == [8, 8, 16, 16]


def test_a_sweep_of_wandb_is_a_space(tmp_path, arms):
    text = """
method: random
metric: {name: val_loss, goal: minimize}
parameters:
  lr: {distribution: log_uniform_values, min: 1e-4, max: 1e-2}
  weight_decay: {values: [0.1, 1.0]}
  recipe.0.p: {min: 0.0, max: 0.5}
  batch: {value: 8}
"""
    settings = read(tmp_path, text, arms)["none"].settings
    assert settings["training.lr"] == Range(low=1e-4, high=1e-2, log=True)
    assert settings["training.weight_decay"] == Choice(values=(0.1, 1.0))
    assert settings["recipe.0.p"] == Range(low=0.0, high=0.5)
    assert settings["training.batch"] == Choice(values=(8,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "holds no mapping"),
        ("setings: {}", "Did you mean 'settings'"),
        ("methods: {nane: {}}", "there is no arm 'nane'. Did you mean 'none'"),
        ("methods: {none: }", "nothing is searched for 'none'"),
        ("settings: {training.lr: 3}", "training.lr is {low: 0.0, high: 0.5}"),
        ("settings: {training.lr: {low: 1, high: 0}}", "goes from 1 to 0"),
        ("settings: {training.lr: {low: 0, high: 1, log: true}}", "above 0 with log"),
        ("settings: {training.lr: {low: .nan, high: 1}}", "training.lr"),
        ("settings: {training.lr: []}", "or a list of values"),
        ("parameters: {lr: {}}", "training.lr is|lr is"),
    ],
)
def test_what_is_no_space_is_one_sentence(tmp_path, arms, text, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path, text, arms)
