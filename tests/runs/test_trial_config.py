"""Arms, recipes, functions and commands of trainings of the user's own, as plain data names them."""

import functools

import pytest

import transformer_dropout as td
from transformer_dropout.errors import InputError
from transformer_dropout.runs.trial_config import (
    PROGRAM_BYTES,
    TrialConfig,
    checked_arm,
    digests,
    find_function,
    load_arms,
    place_of,
    programs_in,
    rules_of,
    split_command,
)

RULE = {"select": "mlp_output", "layer": "Dropout", "p": 0.1}


def train(trial):
    """A function at the top of a file."""


@functools.wraps(train)
def wrapped(trial):
    """Another one around it."""


@pytest.mark.parametrize(
    "keys", [{"seed": 0}, {"seed": 2**32 - 1}, {"steps": 1}, {"steps": None}, {"format": 1}]
)
def test_what_is_in_its_range_is_taken(keys):
    config = TrialConfig(**keys)
    assert config.to_data() == TrialConfig().to_data() | keys


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"seed": -1}, "between 0 and 4294967295"),
        ({"seed": 2**32}, "between 0 and 4294967295"),
        ({"steps": 0}, "at least 1"),
        ({"format": 2}, "reads up to format 1"),
        ({"name": ""}, "name of an arm"),
        ({"recipe": [{"select": "block"}]}, "A rule needs select and layer"),
    ],
)
def test_what_is_not_is_refused(keys, words):
    with pytest.raises(InputError, match=words):
        TrialConfig(**keys)


def test_a_digest_and_a_folder_name_tell_configs_apart():
    config = TrialConfig(name="My Arm", settings={"a": 1, "b": 2})
    assert config.fingerprint() == TrialConfig(name="My Arm", settings={"b": 2, "a": 1}).fingerprint()
    assert len(config.fingerprint()) == 16
    assert config.fingerprint() != TrialConfig(name="My Arm", settings={"a": 1, "b": 3}).fingerprint()
    assert (config.slug(), TrialConfig(name="日本").slug()) == ("my-arm", "trial")


def test_a_file_of_arms_is_a_list_of_them(tmp_path):
    file = tmp_path / "arms.yaml"
    file.write_text("- name: none\n- {name: lima, recipe: lima, settings: {lr: 0.1}}\n")
    first, second = load_arms(file)
    assert (first.name, first.recipe, first.settings) == ("none", [], {})
    assert (second.name, second.recipe, second.settings) == ("lima", "lima", {"lr": 0.1})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "holds no list of arms"),
        ("name: a", "holds no list of arms"),
        ("- name: a\n- b", r"arms\.yaml: arm 2 is no mapping with a name: 'b'"),
        ("- name: a\n- name: b\n  recipee: []", r"arms\.yaml:3:3: unknown key 'recipee'.*'recipe'"),
    ],
)
def test_a_file_of_anything_else_is_refused(tmp_path, text, words):
    file = tmp_path / "arms.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=words):
        load_arms(file)


def test_an_arm_of_no_file_is_named_by_its_number():
    with pytest.raises(InputError, match=r"^arm 1 is no mapping with a name: 3\.$"):
        checked_arm(3, 0, {})


def test_a_recipe_may_be_one_or_rules_or_a_ready_one():
    assert rules_of(td.Recipe.from_data([RULE])) == rules_of([RULE]) == [RULE]
    assert rules_of([]) == rules_of(None) == []
    assert rules_of("lima") == td.recipes.lima().to_data()


@pytest.mark.parametrize("name", ["limo", "rules_of", "Recipe"])
def test_no_other_word_is_a_ready_recipe(name):
    with pytest.raises(InputError, match=rf"no ready recipe '{name}'.*There are: .*lima.*; anything else"):
        rules_of(name)


def test_a_function_is_found_where_it_says_it_stands(tmp_path):
    place = place_of(train)
    assert place == f"{__file__}:train" and place_of(wrapped) == place
    file = tmp_path / "mine.py"
    file.write_text("def train(trial):\n    return 7\n\nvalue = 3\n")
    assert find_function(f"{file}:train")(None) == 7
    for text, words in [
        (f"{file}:trainn", r"has no function 'trainn'\..*'train'"),
        (f"{file}:value", "has no function 'value'"),
        (f"{file}:", "names no function; write FILE"),
        (f"{tmp_path}/mine.txt:train", "names no function; write FILE"),
        (f"{tmp_path}/other.py:train", r"There is no file .*other\.py"),
    ]:
        with pytest.raises(InputError, match=words):
            find_function(text)


@pytest.mark.parametrize("function", [lambda trial: None, functools.partial(train), 3, print])
def test_what_stands_at_the_top_of_no_file_has_no_place(function):
    with pytest.raises(InputError, match="write it at the top of a file"):
        place_of(function)


def test_programs_are_the_small_files_that_a_command_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, size in (
        ("a.py", 10),
        ("b.py", PROGRAM_BYTES),
        ("model.bin", PROGRAM_BYTES + 1),
        ("{c}.py", 1),
    ):
        (tmp_path / name).write_bytes(b"#" * size)
    (tmp_path / "folder").mkdir()
    found = programs_in("python a.py b.py model.bin {c}.py folder missing.py --seed {seed}")
    assert found == [tmp_path / "a.py", tmp_path / "b.py"]
    first = digests(found)
    assert list(first) == [str(path) for path in found] and all(len(d) == 16 for d in first.values())
    (tmp_path / "a.py").write_bytes(b"##")
    assert [first[str(path)] == digests(found)[str(path)] for path in found] == [False, True]


def test_words_of_a_command_are_those_of_a_shell():
    assert split_command("python 'a b.py' --x=\"1 2\"") == ["python", "a b.py", "--x=1 2"]
    with pytest.raises(InputError, match="no closing quotation"):
        split_command("python 'a")
