"""The nine published run configs: read verbatim, mapped key by key, counted, and trained small."""

import copy
import math
from pathlib import Path

import pytest
import torch
import yaml

from transformer_dropout.errors import InputError
from transformer_dropout.recipe import Rule
from transformer_dropout.runs.cost import count_cost, count_parameters, sketch_of_splits
from transformer_dropout.runs.loop import build_model
from transformer_dropout.runs.run import run
from transformer_dropout.runs.run_config import config_from_data, load_run_config
from transformer_dropout.schedule_data import schedule_from_data
from transformer_dropout.tasks.language.published import PublishedCoefficient, from_published, is_published
from transformer_dropout.yaml_file import read_yaml

FOLDER = Path(__file__).parents[3] / "configs" / "published"
VOCABULARY = 50_257
WITHOUT_POSITIONAL = {
    "with_penalty": 15_335_424,
    "without_penalty": 15_335_424,
    "shift_init_half_pi": 15_335_424,
    "shift_init_pi": 15_335_424,
    "baseline": 15_441_192,
    "dropout_0.2_baseline": 15_441_192,
    "dropout_0.3_baseline": 15_441_192,
    "dropout_0.4_baseline": 15_441_192,
    "precomputed_masks": 15_418_368,
}

# A key's new value, with what has to change along with it for the config to stay valid.
MODEL, LEARNED = ("model_config",), ("model_config", "learned_dropout_config")
COEFFICIENT = (*MODEL, "dropout_l1_norm_coeff_config")
ENTROPY = (*MODEL, "dropout_entropy_coeff_config")
ENTROPY_PENALTY = {
    (*MODEL, "use_dropout_entropy_penalty"): True,
    (*MODEL, "use_dropout_l1_norm_penalty"): False,
    (*MODEL, "l1_norm_penalty_type"): None,
    COEFFICIENT: None,
}
CHANGES = {
    ("batch_size",): {("batch_size",): 25},
    ("beta1",): {("beta1",): 0.8},
    ("beta2",): {("beta2",): 0.99},
    ("decay_lr",): {("decay_lr",): False},
    ("est_interval",): {("est_interval",): 100},
    ("est_steps",): {("est_steps",): 10},
    ("gradient_accumulation_steps",): {("gradient_accumulation_steps",): 4},
    ("lr",): {("lr",): 1e-3},
    ("lr_decay_iters",): {("lr_decay_iters",): 1000},
    ("min_lr",): {("min_lr",): 0.0},
    ("train_steps",): {("train_steps",): 100},
    ("warmup_iters",): {("warmup_iters",): 10},
    ("weight_decay",): {("weight_decay",): 1.0},
    (*MODEL, "context_size"): {(*MODEL, "context_size"): 100},
    (*MODEL, "n_embed"): {(*MODEL, "n_embed"): 72},
    (*MODEL, "n_head"): {(*MODEL, "n_head"): 3},
    (*MODEL, "n_layer"): {(*MODEL, "n_layer"): 2},
    (*MODEL, "use_bias"): {(*MODEL, "use_bias"): True},
    (*MODEL, "dropout_rate"): {(*MODEL, "dropout_rate"): 0.25},
    (*MODEL, "l1_norm_penalty_type"): {(*MODEL, "l1_norm_penalty_type"): "LINEAR"},
    (*MODEL, "use_dropout_l1_norm_penalty"): {
        (*MODEL, "use_dropout_l1_norm_penalty"): False,
        (*MODEL, "l1_norm_penalty_type"): None,
        COEFFICIENT: None,
    },
    (*MODEL, "use_dropout_entropy_penalty"): ENTROPY_PENALTY,
    (*COEFFICIENT, "max_coeff"): {(*COEFFICIENT, "max_coeff"): 0.5},
    (*COEFFICIENT, "min_coeff"): {(*COEFFICIENT, "min_coeff"): 0.05},
    (*COEFFICIENT, "exp_rate"): {(*COEFFICIENT, "exp_rate"): 2e-4},
    (*LEARNED, "mask_rounding_type"): {(*LEARNED, "mask_rounding_type"): "SIGMOID"},
    (*LEARNED, "sigmoid_scale"): {
        (*LEARNED, "mask_rounding_type"): "SIGMOID",
        (*LEARNED, "sigmoid_scale"): 30.0,
    },
    (*ENTROPY, "max_coeff"): {
        **ENTROPY_PENALTY,
        ENTROPY: {"max_coeff": 0.3},
    },
    (*LEARNED, "dropout_input_type"): {(*LEARNED, "dropout_input_type"): "EMBED"},
    (*LEARNED, "n_head"): {(*LEARNED, "n_head"): 3},
    (*LEARNED, "shift_init"): {(*LEARNED, "shift_init"): 1.5},
    (*LEARNED, "use_bias"): {(*LEARNED, "use_bias"): True},
    (*LEARNED, "use_detached_input"): {(*LEARNED, "use_detached_input"): True},
}


@pytest.fixture
def full():
    """A published config in which every key that can be set is set."""
    data = read_yaml(FOLDER / "with_penalty.yaml").data
    data["model_config"]["dropout_l1_norm_coeff_config"] |= {"min_coeff": 0.0, "exp_rate": 1e-4}
    return data


def with_changes(data, changes):
    data = copy.deepcopy(data)
    for (*parents, last), value in changes.items():
        target = data
        for part in parents:
            target = target[part]
        target[last] = value
    return data


def key_paths(data, prefix=()):
    for key, value in data.items():
        if isinstance(value, dict):
            yield from key_paths(value, (*prefix, key))
        else:
            yield (*prefix, key)


def mapped(data):
    return config_from_data(from_published(copy.deepcopy(data), {}, name="a"), {})


def test_there_are_nine_of_them():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(WITHOUT_POSITIONAL)


@pytest.mark.parametrize("name", WITHOUT_POSITIONAL)
def test_a_published_file_loads_verbatim_under_its_own_name(name):
    config = load_run_config(FOLDER / f"{name}.yaml")
    published = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert config.name == name.replace("_", " ")
    assert config.model.width == published["model_config"]["n_embed"]
    assert config.training.steps == published["train_steps"]
    assert config.training.lr == float(published["lr"])


@pytest.mark.parametrize("name", ["with_penalty", "baseline", "precomputed_masks"])
def test_parameters_without_the_positional_embedding_are_the_published_ones(name):
    config = load_run_config(FOLDER / f"{name}.yaml")
    cost = count_cost(config, sketch_of_splits(config))
    assert cost.without_positional == WITHOUT_POSITIONAL[name]
    assert cost.frozen == (82_944 if name == "precomputed_masks" else 0)


@pytest.mark.parametrize("name", WITHOUT_POSITIONAL)
def test_the_model_of_every_file_has_the_published_number_of_parameters(name):
    with torch.device("meta"):
        config = load_run_config(FOLDER / f"{name}.yaml")
        model, _ = build_model(config, sketch_of_splits(config))
    assert count_parameters(model) - model.embedding.position.weight.numel() == WITHOUT_POSITIONAL[name]


def test_every_key_is_in_the_table_of_changes(full):
    others = {(*MODEL, "use_dropout_entropy_penalty"), (*LEARNED, "sigmoid_scale"), (*ENTROPY, "max_coeff")}
    assert set(key_paths(full)) | others == set(CHANGES)


@pytest.mark.parametrize("key", CHANGES, ids=".".join)
def test_every_key_changes_the_run(full, key):
    changed = with_changes(full, CHANGES[key])
    assert mapped(changed) != mapped(full)
    assert mapped(changed).name == mapped(full).name


@pytest.mark.parametrize(
    ("kind", "layer"),
    [
        ("NOISE_AND_LINEAR", "LearnedDropout"),
        ("SIGMOID", "LearnedSigmoidDropout"),
        ("SIGMOID_DETACH", "LearnedSigmoidStraightThrough"),
    ],
)
def test_each_published_mask_has_its_layer(full, kind, layer):
    rule = mapped(with_changes(full, {(*LEARNED, "mask_rounding_type"): kind})).recipe[0]
    assert rule["layer"] == layer and "slope" not in rule
    if layer != "LearnedDropout":
        assert Rule.from_data(rule).layer(12, 3).slope == 60


def test_a_penalty_without_a_coefficient_has_the_one_of_the_published_runs(full):
    assert mapped(with_changes(full, {COEFFICIENT: None})).recipe[0]["weight"] == 0.1
    assert mapped(with_changes(full, ENTROPY_PENALTY)).recipe[0]["weight"] == 0.1


def test_the_entropy_penalty_has_a_coefficient_of_its_own(full):
    changes = ENTROPY_PENALTY | {ENTROPY: {"max_coeff": 0.3, "min_coeff": 0.0, "exp_rate": 1e-4}}
    rule = mapped(with_changes(full, changes)).recipe[0]
    assert rule["penalty"] == "entropy"
    assert rule["weight"]["exponential"]["end"] == 0.3


def test_each_key_goes_where_it_belongs(full):
    config = mapped(full)
    assert (config.model.width, config.model.heads, config.model.blocks) == (144, 9, 26)
    assert (config.model.context, config.model.bias) == (200, False)
    training = config.training
    assert (training.steps, training.batch, training.accumulation) == (26_000, 50, 16)
    assert (training.lr, training.min_lr, training.warmup_steps) == (9e-4, 9e-5, 300)
    assert (training.decay_steps, training.weight_decay, training.eval_every) == (700_000, 0.1, 500)
    assert (training.beta1, training.beta2, training.eval_windows) == (0.9, 0.95, 10_000)
    assert config.recipe[0]["penalty"] == "squared"
    assert (config.recipe[0]["heads"], config.recipe[0]["shift"]) == (9, 0.0)


def test_without_decay_the_learning_rate_stays(full):
    training = mapped(with_changes(full, {("decay_lr",): False})).training
    assert training.min_lr == training.lr == 9e-4


def test_a_dropout_rate_acts_at_the_four_places_of_gpt():
    rules = load_run_config(FOLDER / "dropout_0.3_baseline.yaml").recipe
    sites = {"embedding", "attention_weights", "attention_output", "mlp_output"}
    assert {rule["select"] for rule in rules} == sites
    assert {rule["p"] for rule in rules} == {0.3}


@pytest.mark.parametrize("rate", [1e-4, 5e-5, 0.01])
@pytest.mark.parametrize(("low", "high"), [(0.0, 0.1), (0.02, 1.5)])
def test_the_exponential_coefficient_is_the_published_formula(rate, low, high):
    steps = 2000
    weight = PublishedCoefficient(max_coeff=high, min_coeff=low, exp_rate=rate).weight(steps)
    schedule = schedule_from_data(weight, "weight")
    for step in (0, 1, 50, 333, 1000, 1999, 2000):
        expected = min(high, low + math.exp(rate * step) - 1)
        assert schedule(step / steps) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_constant_coefficient_stays_a_number():
    assert PublishedCoefficient(max_coeff=0.1).weight(100) == 0.1


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({(*MODEL, "n_head"): 7}, "n_embed 144 is not divisible by n_head 7"),
        ({(*MODEL, "dropout_rate"): 1.2}, "dropout_rate is 1.2"),
        ({(*MODEL, "use_dropout_entropy_penalty"): True}, "a layer has one penalty"),
        ({(*MODEL, "l1_norm_penalty_type"): None}, "l1_norm_penalty_type is to be set exactly when"),
        ({LEARNED: None}, "learned_dropout_config is missing"),
        ({(*LEARNED, "mask_rounding_type"): "NOISE"}, "mask_rounding_type"),
        ({(*LEARNED, "sigmoid_scale"): 3.0}, "sigmoid_scale is set, but"),
        (
            {(*LEARNED, "mask_rounding_type"): "SIGMOID", (*LEARNED, "dropout_input_type"): "EMBED"},
            "in no published run",
        ),
        ({ENTROPY: {"max_coeff": 0.3}}, "dropout_entropy_coeff_config is set, but"),
        (ENTROPY_PENALTY | {COEFFICIENT: {"max_coeff": 1}}, "dropout_l1_norm_coeff_config is set, but"),
        ({(*COEFFICIENT, "exp_rate"): None}, "min_coeff needs exp_rate"),
        ({(*COEFFICIENT, "exp_rate"): 1.5}, "exp_rate is 1.5"),
        ({(*COEFFICIENT, "min_coeff"): 0.2}, "min_coeff is 0.2"),
        ({(*LEARNED, "shift_intt"): 0}, "Did you mean 'shift_init'?"),
        ({(*LEARNED, "n_head"): "nine"}, "n_head is 'nine'"),
        ({("batchsize",): 5}, "Did you mean 'batch_size'?"),
    ],
)
def test_a_published_config_that_does_not_fit_is_one_sentence(full, changes, part):
    with pytest.raises(InputError) as caught:
        mapped(with_changes(full, changes))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shift", [-0.1, 3.2])
def test_a_shift_outside_zero_to_pi_is_refused_before_anything_is_written(full, shift, tmp_path):
    config = mapped(with_changes(full, {(*LEARNED, "shift_init"): shift, (*MODEL, "n_layer"): 1}))
    with pytest.raises(InputError, match="lies between 0 and pi"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_misspelt_key_is_found_in_its_line(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text((FOLDER / "with_penalty.yaml").read_text().replace("shift_init:", "shift_intt:"))
    with pytest.raises(InputError, match=r"a\.yaml:21:5: .*shift_intt.*Did you mean 'shift_init'"):
        load_run_config(path)


def test_the_own_form_is_not_taken_for_the_published_one():
    assert not is_published({"model": {}})


def test_a_file_runs_with_its_own_tokenizer_without_a_download_and_says_so(tmp_path, text_file, monkeypatch):
    from typer.testing import CliRunner

    from transformer_dropout.cli import app

    here = "transformer_dropout.tasks.language.data.{}.gpt2_is_here"
    for module in ("tokenization", "prepared"):
        monkeypatch.setattr(here.format(module), lambda: False)
    changes = {"model.width": "36", "model.blocks": "1", "model.context": "16", "data.source": str(text_file)}
    small = {"steps": 2, "batch": 2, "accumulation": 1, "eval_every": 2, "warmup_steps": 0}
    small |= {"eval_windows": 2, "probe_windows": 2}
    changes |= {f"training.{key}": str(value) for key, value in small.items()}
    record = run(load_run_config(FOLDER / "with_penalty.yaml", changes), tmp_path / "run")
    assert record["data"]["vocabulary_size"] == VOCABULARY
    (note,) = record["notes"]
    assert "trained on the training split, among the 50,257 ids" in note
    block = 12 * 36**2 + 2 * 36 + 3 * 36**2 + 36
    assert record["parameters"]["without_positional"] == VOCABULARY * 36 + block + 36
    words = ["generate", str(tmp_path / "run"), "--prompt", "The cat", "--tokens", "5"]
    assert CliRunner().invoke(app, words).exit_code == 0


@pytest.mark.parametrize("name", WITHOUT_POSITIONAL)
def test_every_file_trains_at_a_reduced_scale(name, tmp_path, text_file):
    changes = {"model.width": "36", "model.blocks": "2", "model.context": "16"}
    changes |= {"data.tokenizer": "bytes", "data.source": str(text_file)}
    small = {"steps": 12, "batch": 4, "accumulation": 1, "eval_every": 12, "warmup_steps": 2}
    small |= {"lr": 1e-2, "eval_windows": 8, "probe_windows": 8}
    changes |= {f"training.{key}": str(value) for key, value in small.items()}
    config = load_run_config(FOLDER / f"{name}.yaml", changes)
    record = run(config, tmp_path / "run")
    assert record["status"] == "finished"
    assert record["result"]["val_loss"] < math.log(256) - 0.5
    assert bool(record["notes"]) == (name == "precomputed_masks")
    assert (record["result"]["keep"] is None) == (name.endswith("baseline"))


def test_a_coefficient_with_a_rate_alone_grows_from_zero():
    alone = PublishedCoefficient(max_coeff=0.1, exp_rate=1e-4)
    assert alone.weight(1000) == PublishedCoefficient(max_coeff=0.1, min_coeff=0.0, exp_rate=1e-4).weight(
        1000
    )
