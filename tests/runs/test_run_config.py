"""Run configs: what is read, what is refused and with which words."""

import math
from dataclasses import fields, is_dataclass, replace
from types import SimpleNamespace

import pytest

from transformer_dropout.errors import InputError
from transformer_dropout.runs import run_config
from transformer_dropout.runs.run_config import (
    FORMAT,
    RunConfig,
    config_from_data,
    load_run_config,
    set_dotted,
)
from transformer_dropout.runs.training_config import (
    REGULARIZERS,
    EarlyStoppingConfig,
    ElasticNetConfig,
    ExpertsConfig,
    SelfTunedConfig,
)

RULE = "recipe: [{select: mlp_output, layer: Dropout, p: 0.1}]\n"


@pytest.fixture
def load(tmp_path):
    def load(text, **changes):
        path = tmp_path / "my_run.yaml"
        path.write_text(text)
        return load_run_config(path, {key.replace("__", "."): value for key, value in changes.items()})

    return load


def refusal(load, text, **changes):
    with pytest.raises(InputError) as caught:
        load(text, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_scientific_notation_reads_as_a_number(load):
    assert load("training: {lr: 9e-4, min_lr: 9e-5}").training.lr == 9e-4


def test_an_empty_file_is_all_defaults_under_the_files_name(load):
    assert load("") == RunConfig(name="my_run")


def test_a_name_that_yaml_1_1_takes_for_a_truth_stays_text(load):
    assert load("name: on").name == "on"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("training:\n  stepps: 5", ":2:3: unknown key 'training.stepps'. Did you mean 'steps'?"),
        ("modle: {}", ":1:1: unknown key 'modle'. Did you mean 'model'?"),
        ("training: {early_stopping: {patiense: 1}}", "'training.early_stopping.patiense'. Did you mean"),
        ("training:\n  lr: fast", ":2:3: training.lr is 'fast'; write a number or a schedule"),
        ("model: {width: 1.5}", ":1:9: model.width is 1.5, but it is a whole number"),
        ("training: {precision: float16}", "'auto', 'float32' or 'bfloat16'"),
        ("model: {width: 10, heads: 4}", "model.width 10 is not divisible by model.heads 4"),
        ("model: {blocks: 0}", "model.blocks is 0"),
        ("recipe: [{select: mlp_output, layer: Dropout, p: 1.5}]", "p is 1.5"),
        ("recipe: [{select: mlp_output, layer: Dropot, p: 0.5}]", "Did you mean 'Dropout'?"),
        (
            "recipe: [{select: mlp_output, layer: Dropout, p: high}]",
            "p of the rule for 'mlp_output' is 'high'",
        ),
        ("recipe: [7]", ":1:10: recipe.0 is 7"),
        ("seed: -1", "seed is -1, but it lies between 0 and"),
        (f"seed: {2**32}", "but it lies between 0 and"),
        ("training: {lr: .nan}", "training.lr is nan"),
        ("training: {lr: .inf}", "training.lr is inf"),
        ("training: {min_lr: 1}", "training.min_lr 1.0 is above training.lr 0.001"),
        ("training: {clip: 0}", "training.clip is 0.0"),
        ("training: {eval_windows: 0}", "training.eval_windows is 0"),
        ("training: {decay_steps: -5}", "training.decay_steps is -5"),
        ("training: {beta1: 1}", "training.beta1 is 1.0"),
        ("training: {early_stopping: {patience: 0}}", "patience of at least 1"),
        ("data: {validation_fraction: 1}", "data.validation_fraction is 1.0"),
        ("training: {weight_decay: fast}", "training.weight_decay is 'fast'; write a number or a schedule"),
        ("training: {weight_decay: -1}", "training.weight_decay becomes -1, but it is finite and at least 0"),
        ("training: {weight_decay: '0,1@0.5,-1'}", "training.weight_decay becomes -1"),
        ("training: {l1: {lineer: {start: 0, end: 1}}}", "training.l1 has the unknown schedule 'lineer'"),
        ("training: {l2: .nan}", "training.l2 is nan"),
        ("training: {proximal_l1: '1'}", "training.proximal_l1 is '1'"),
        ("training: {elastic_net: {weight: 1, l1_ratio: 2}}", "l1_ratio is 2.0; it is a share from 0 to 1"),
        ("training: {elastic_net: {l1_ratio: 0.5}}", "the key 'training.elastic_net.weight' is missing"),
        (
            "training:\n  elastic_net: {wieght: 1, weight: 1}",
            ":2:17: unknown key 'training.elastic_net.wieght'. Did you mean 'weight'?",
        ),
        (
            "training:\n  label_smothing: 0.1",
            ":2:3: unknown key 'training.label_smothing'. Did you mean 'label_smoothing'?",
        ),
        ("training: {label_smoothing: 1}", "training.label_smoothing is 1.0"),
        ("training: {proximal_l2: 1}", "Did you mean 'proximal_l1'?"),
        ("training: {l2_sp: 0.1}", "the task language trains from random ones"),
        ("- a", "holds no mapping"),
        ("training: {steps: '5'}", "training.steps is '5', but it is a whole number"),
        ("training: {steps: 1e3}", "training.steps is 1000.0, but it is a whole number; write 1000"),
        ("training: {steps: true}", "training.steps is True, but it is a whole number"),
        ("training: {steps: 1_000}", "training.steps is '1_000'"),
        ("training: {compile: one}", "training.compile is 'one', but it is true or false"),
        ("training: {compile: 1}", "training.compile is 1, but it is true or false"),
        ("training: {clip: 'yes'}", "training.clip is 'yes', but it is a number or null"),
        ("training: {clip: .inf}", "training.clip is inf, but every number here is finite"),
        ("training: {early_stopping: {min_delta: .nan}}", "training.early_stopping.min_delta is nan"),
        ("recipe: [{select: block, layer: DropPath, p: .nan}]", "recipe.0.p is nan"),
        ("name: 3", "name is 3, but it is text"),
        ("name: ''", "text of 1 to 120 characters"),
        (f"name: {'a' * 121}", "text of 1 to 120 characters"),
        ('name: "a\\tb"', "that can be printed"),
        ("format: -1", "format is -1"),
        ("seed: 5000000000", "seed is 5000000000"),
        ("model: {blocks: 1000000}", "at most 1,000 blocks"),
        ("model: {width: 400000, heads: 4}", "are built"),
        ("a: &a [*a]", "an alias stands inside what it stands for"),
        (
            "a: &a [x, x]\nb: &b [" + ", ".join(["*a"] * 400) + "]\nc: [" + ", ".join(["*b"] * 400) + "]",
            "aliases",
        ),
        ("a: " + "[" * 200 + "]" * 200, "lie more than 50 deep"),
        ("training: {steps: !!int abc}", "this is not YAML"),
        (f"seed: {'9' * 5000}", "this is not YAML"),
        ("name: !!timestamp x", "this is not YAML"),
        (f"format: {FORMAT + 1}\nkey_of_tomorrow: 1", f"reads up to format {FORMAT}"),
    ],
)
def test_what_does_not_fit_is_one_sentence(load, text, part):
    assert part in refusal(load, text)


def test_dotted_changes_reach_nested_keys_and_items_of_lists(load):
    config = load(RULE, training__lr="3e-4", recipe__0__p="0.2", training__early_stopping__patience="2")
    assert config.training.lr == 3e-4
    assert config.recipe[0]["p"] == 0.2
    assert config.training.early_stopping == EarlyStoppingConfig(patience=2)


def test_a_change_can_replace_a_whole_value(load):
    assert load("training: {early_stopping: {patience: 2}}", training__early_stopping="null").training == (
        RunConfig().training
    )
    assert load(RULE, recipe="[]").recipe == []


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"training__learning_rate": "1"}, "unknown key 'training.learning_rate'"),
        ({"recipe__3__p": "0.1"}, "--set recipe.3.p: the list there has the positions 0 to 0, not 3."),
        ({"recipe__p": "0.1"}, "--set recipe.p: the list there has the positions 0 to 0, not p."),
        ({"seed__x": "1"}, "--set seed.x: 'seed' has no keys of its own."),
        ({"seed__x__y": "1"}, "--set seed.x.y: there is no 'x' to go into."),
        ({"training__lr": "fast"}, "training.lr is 'fast'"),
        ({"training__l2_sp": "0.9"}, "use training.l2."),
    ],
)
def test_a_change_that_does_not_fit_is_one_sentence(load, change, part):
    assert part in refusal(load, "seed: 0\n" + RULE, **change)


def test_a_bad_change_does_not_blame_the_line_of_the_file(load):
    assert "my_run.yaml" not in refusal(load, "training:\n  batch: 3", training__batch="fast")
    assert "my_run.yaml:2" in refusal(load, "training:\n  batch: fast", training__steps="5")


def test_setting_makes_the_mappings_on_the_way():
    data = {}
    set_dotted(data, "a.b.c", 1)
    assert data == {"a": {"b": {"c": 1}}}


def test_a_config_survives_writing_and_reading(tmp_path, tiny, learned):
    config = tiny(name="9e-4", recipe=learned, early_stopping=EarlyStoppingConfig(patience=3), clip=None)
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    again = load_run_config(path)
    assert again == config
    assert again.fingerprint() == config.fingerprint()


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("3", [3.0, 3.0, 3.0]),
        ("3,0", [3.0, 1.5, 0.0]),
        ("3,0@0.5,0", [3.0, 0.0, 0.0]),
        ("{cosine: {start: 2, end: 0}}", [2.0, 1.0, 0.0]),
    ],
)
@pytest.mark.parametrize("key", ["weight_decay", "l1", "l2", "proximal_l1"])
def test_a_strength_is_a_number_or_a_schedule_in_the_file_and_on_the_command_line(load, key, text, values):
    quoted = text if text.startswith("{") else f"'{text}'" if "," in text else text
    for config in (load(f"training: {{{key}: {quoted}}}"), load("", **{f"training__{key}": text})):
        schedule = config.training.schedule(key)
        assert [schedule(at) for at in (0.0, 0.5, 1.0)] == pytest.approx(values)


def test_keys_that_regularize_leave_the_fingerprint_of_runs_without_them():
    data = RunConfig(name="a").to_data()["training"]
    assert not data.keys() & set(REGULARIZERS)
    assert data["weight_decay"] == 0.1
    # As recorded before there were such keys.
    assert RunConfig(name="a").fingerprint() == "08969a629e132906"


def different(value):
    """Return a valid value other than this one for any field of a run config."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value * 2 if value else 1
    if isinstance(value, float):
        return value * 0.5 if value else 0.5
    choices = {"auto": "float32", "ddp": "fsdp"}
    return choices.get(value, "other") if isinstance(value, str) else 7


# Keys that mean nothing without another, which has values of its own here.
NEED_ANOTHER = {
    "rdrop_view": ({"rdrop": 0.7}, "learned"),
    "rdrop_blocks": ({"rdrop": 0.7}, 1),
    "held_out_every": ({"held_out": 0.7}, 2),
}


def variants(config, prefix=()):
    """Yield for every field at any depth its path and a copy of the config in which only it differs."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            for path, changed in variants(value, (*prefix, field.name)):
                yield path, replace(config, **{field.name: changed})
        elif field.name == "task":
            yield (*prefix, field.name), RunConfig(name=config.name, task="sentences")
        elif field.name == "folds":
            yield (*prefix, field.name), replace(config, folds=2)
        elif field.name in ("l2_sp", "label_smoothing", "fold"):
            continue  # not in this task, and not beside R-Drop
        elif field.name in NEED_ANOTHER:
            needed, value = NEED_ANOTHER[field.name]
            with_both = replace(config, **needed, **{field.name: value})
            yield (*prefix, field.name), with_both
        elif field.name == "self_tuned":
            yield (*prefix, field.name), replace(config, self_tuned=SelfTunedConfig())
        elif field.name == "experts":
            yield (*prefix, field.name), replace(config, experts=ExpertsConfig())
        elif field.name == "recipe":
            rule = {"select": "mlp_output", "layer": "Dropout", "p": 0.5}
            yield (*prefix, field.name), replace(config, recipe=[rule])
        elif field.name == "format":
            yield (*prefix, field.name), replace(config, format=0)
        elif field.name == "elastic_net":
            yield (*prefix, field.name), replace(config, elastic_net=ElasticNetConfig(weight=1.0))
        elif field.name == "early_stopping":
            yield (*prefix, field.name), replace(config, early_stopping=EarlyStoppingConfig())
        else:
            yield (*prefix, field.name), replace(config, **{field.name: different(value)})


def test_the_fingerprint_changes_with_any_field():
    config = RunConfig(name="a")
    changed = {path: variant.fingerprint() for path, variant in variants(config)}
    assert len(changed) > 30
    assert config.fingerprint() not in changed.values()
    assert len(set(changed.values())) == len(changed)
    assert config.fingerprint() == RunConfig(name="a").fingerprint()


@pytest.mark.parametrize(
    ("name", "slug"), [("dropout p=0.1 + decay", "dropout-p-0.1-decay"), ("..", "run"), ("Ä/../b", "b")]
)
def test_a_name_becomes_a_harmless_folder_name(name, slug):
    assert RunConfig(name=name).slug() == slug


def test_changes_apply_to_plain_data_too():
    config = config_from_data(RunConfig(name="a").to_data(), {"training.min_lr": "0"})
    assert config.training.min_lr == 0
    assert math.isclose(config.training.lr, 1e-3)


def test_a_task_reads_configs_in_another_form(monkeypatch):
    asked = []
    task = SimpleNamespace(translate=lambda *given: (given, "translated"))
    monkeypatch.setattr(run_config, "find_task", lambda name: asked.append(name) or task)
    data, places = {"task": "mine"}, {("task",): "a.yaml:1"}
    assert run_config.translate_config(data, places, "my name") == ((data, places, "my name"), "translated")
    monkeypatch.setattr(run_config, "find_task", lambda name: asked.append(name) or SimpleNamespace())
    assert run_config.translate_config({}, places, "my name") == ({}, places)
    assert asked == ["mine", run_config.DEFAULT_TASK]
