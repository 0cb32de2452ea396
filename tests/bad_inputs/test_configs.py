"""Run configs, arms, spaces, recipes and trials that no one could have meant."""

import re

import pytest
from hypothesis import strategies as st

from tests.bad_inputs.cases import Case, section_paths, unreadable, with_value, words_like, wrong_values
from transformer_dropout import layers
from transformer_dropout.compare.trials import trial_configs
from transformer_dropout.compare.tuning.space import read_methods
from transformer_dropout.errors import InputError
from transformer_dropout.runs.find_task import find_task
from transformer_dropout.runs.run_config import RunConfig, load_run_config
from transformer_dropout.runs.trial_config import TrialConfig, load_arms, load_trial_config
from transformer_dropout.yaml_file import dump_yaml, read_yaml

OWN = ("language", "images", "images_vit", "regression", "sentences", "causal_lm")
PUBLISHED = (
    *("baseline", "dropout_0.2_baseline", "dropout_0.3_baseline", "dropout_0.4_baseline"),
    *("with_penalty", "without_penalty", "precomputed_masks", "shift_init_pi", "shift_init_half_pi"),
)
TOO_MANY = (10**12, 2**63, 10**30)
# By key, numbers and words outside its domain.
OUTSIDE = {
    "name": ("", " ", "n" * 300, "\x1b[2J", "a\nb"),
    "format": (-1, 2, 99),
    "seed": (-1, 2**32, 2**64, 2**70),
    "task": ("langauge", "nowhere.py", "no.such.module", "language:Nothing", "", "os"),
    "training.steps": (0, -1, -(2**63)),
    "training.batch": (0, -4, *TOO_MANY),
    "training.accumulation": (0, -1),
    "training.eval_every": (0, -1),
    "training.probe_windows": (0, -1),
    "training.eval_windows": (0, -1),
    "training.decay_steps": (0, -1),
    "training.warmup_steps": (-1,),
    "training.lr": (-1e-3, "0.1", "0,x", "0.1,0.2@2,0", {"linear": {"start": 1.0}}, {"line": {}}, {}),
    "training.min_lr": (-1e-3, 1e6),
    "training.weight_decay": (-0.1, "0,-1", {"linear": {"start": 0.0, "end": -1.0}}),
    "training.l1": (-0.1, "0.1,-0.1", {"exponential": {"start": 0.0, "end": 1.0, "rate": 1e6}}),
    "training.l2": (-0.1, {"cosine": {"start": 0.0, "end": "1"}}, {"cosine": {"start": True, "end": 1.0}}),
    "training.proximal_l1": (-0.1, {"early": {"p": 0.1, "until": 2.0}}, {"late": {"p": 0.1, "start": 1.0}}),
    "training.label_smoothing": (-0.1, 1.0, 2),
    "training.rdrop": (-1.0, {"curriculum": {"p": 0.1, "gamma": 0.0}}),
    "training.l2_sp": (-1.0, 0.5),
    "training.rdrop_blocks": (0, -1),
    "training.ema": (-0.1, 1.0, "0,1"),
    "training.token_noise": (-0.1, 1.0, "0,1.5"),
    "training.held_out": (-0.1, 1.0, 1.5),
    "training.held_out_every": (0, -1),
    "training.self_tuned": ({"share": 0.0}, {"share": 1.0}, {"every": 0}, {"step": -1.0}, {"zzz": 1}),
    "training.keep_checkpoints": (0, 1, -1),
    "training.report_to": (["zzz"], "tensorboard", "zzz", [5]),
    "training.beta1": (-0.1, 1.0, 1),
    "training.beta2": (-0.1, 1.0, 2.0),
    "training.clip": (0, 0.0, -1.0),
    "training.folds": (1, -1),
    "training.fold": (1, -1),
    "training.early_stopping": ({"patience": 0}, {"min_delta": -1.0}, {"patience": 1.5}, {"zzz": 1}),
    "training.elastic_net": ({}, {"weight": -1.0}, {"weight": 1.0, "l1_ratio": 1.5}),
    "model.width": (0, -8, 10**7, *TOO_MANY),
    "model.heads": (0, -1, 3, 10**9),
    "model.blocks": (0, -1, 10**6, *TOO_MANY),
    "model.context": (0, -1, 10**10, *TOO_MANY),
    "model.patch": (0, -1, 4, 10**12),
    "model.hidden": ([0], [-4], [10**12], [2**62, 2**62], ["4"], 4, "4"),
    "model.source": ("", "nowhere", "~nouser/bert", "a\0b", "n" * 5000, "text.txt", "run", "images"),
    "model.max_tokens": (0, -1, 10**6),
    "model.lora": (0, -1),
    "data.classes": (
        {},
        {"neg": "neg.txt"},
        {"neg": "nowhere.txt", "pos": "pos.txt"},
        ["neg.txt"],
        {"": "a"},
    ),
    "data.train_sentences": (0, -1, 1, 10**6),
    "data.train_examples": (0, -1, 10**6),
    "data.held_out": (0.0, 1.0, -0.5, 1.5),
    "data.source": (
        "",
        "nowhere.txt",
        "nowhere",
        "~nouser/text.txt",
        "dataset:",
        "a\0b",
        "n" * 5000,
        "stdlib",
    ),
    "data.tokenizer": ("", "byte", "bpe", "bpe:", "bpe:3", "bpe:x", "bpe:-1", "gpt2:nowhere", "chars:1"),
    "data.train_tokens": (0, -1, 3),
    "data.validation_tokens": (0, -1, 3),
    "data.test_tokens": (0, -1, 10**9),
    "data.validation_fraction": (0.0, 1.0, -0.5, 1.5, 1e-12),
    "data.train_images": (0, -1, 10**6),
    "data.target": ("zzz", ""),
    "data.columns": ([], ["zzz"], ["a"], "a"),
    "data.train_rows": (0, 1, -1, 10**6),
    "data.augment": ({"zzz": 1}, {"shift": -1}, {"rotate": "x"}, [1]),
}
RULE = {"select": "mlp_output", "layer": "Dropout", "p": 0.1}
BAD_RULES = [
    *({**RULE, "p": p} for p in (-0.1, 1.5, float("nan"), float("inf"), True, "0.1", "x", [0.1], {}, "0,2")),
    *(
        {**RULE, "select": select}
        for select in ("mlp_outptu", "", "[", 5, None, ["mlp_output"], "blocks.9.*")
    ),
    *({**RULE, "layer": layer} for layer in ("Droput", "", 5, None, "os:getcwd", "torch.nn:Linear", "a:b:c")),
    *({**RULE, "blocks": blocks} for blocks in (0, "0", [0.5], [99], [-1], ["0"], {"a": 1}, [True])),
    *({**RULE, "depth": depth} for depth in (-1.0, "x", "20,20", float("nan"), True)),
    *({**RULE, key: 1} for key in ("self", "width", "source", "inputs", "cls", "args", "zzz", "P", "", " p")),
    {"select": "mlp_output"},
    {"layer": "Dropout", "p": 0.1},
    {"select": "mlp_output", "layer": "Dropout"},
    {"select": "mlp_output", "layer": "LearnedDropout", "p": 0.1},
    *(
        {"select": "mlp_output", "layer": "LearnedDropout", "heads": n}
        for n in (0, -1, 5, 1.5, "2", True, 10**9)
    ),
    *({"select": "mlp_output", "layer": "LearnedDropout", "shift": n} for n in (-1, 4.0, "x", float("nan"))),
    *(
        {"select": "mlp_output", "layer": "LearnedDropout", "weight": w}
        for w in (-0.1, "x", float("inf"), True)
    ),
    {"select": "mlp_output", "layer": "LearnedDropout", "penalty": "sqared"},
    {"select": "block", "layer": "DropKey", "p": 0.1},
    5,
    "Dropout",
    None,
    [],
    {},
]
BAD_RECIPES = [*([rule] for rule in BAD_RULES), "bert", 5, True, {"select": "mlp_output"}, [[RULE]]]


def data_of(good, name):
    return read_yaml(good / name).data


def bad_data(good, task):
    """Draw a run config of a task with one thing in it that cannot be."""
    data, kind = data_of(good, f"{task}.yaml"), find_task(task)
    pairs, sections = wrong_values(RunConfig), section_paths(RunConfig)
    for name, section in (("model", kind.Model), ("data", kind.Data)):
        pairs += wrong_values(section, (name,)) + [((name,), value) for value in ("zzz", 5, True, [1], 0, "")]
        sections += section_paths(section, (name,))
    known = {".".join((*path, key)) for path, keys in sections for key in keys}
    pairs += [(tuple(key.split(".")), value) for key in known & OUTSIDE.keys() for value in OUTSIDE[key]]
    pairs += [(("recipe",), recipe) for recipe in (BAD_RECIPES if task == "language" else BAD_RECIPES[-5:])]
    unknown = st.sampled_from(sections).flatmap(
        lambda section: words_like(section[1]).map(lambda word: with_value(data, (*section[0], word), 1))
    )
    return unknown | st.sampled_from(pairs).map(lambda pair: with_value(data, *pair))


def commands(file):
    return st.sampled_from(
        [
            ("train", file, "--out", "out/new"),
            ("train", file, "--dry-run"),
            ("compare", file, "--out", "out"),
            ("tune", file, "--out", "out", "--trials", "2"),
        ]
    )


@pytest.mark.parametrize("task", OWN)
def test_run_configs(good, all_refused, task):
    texts = bad_data(good, task).map(dump_yaml) | unreadable((good / f"{task}.yaml").read_bytes(), "yaml")
    texts = bad_data(good, task).map(dump_yaml) | texts
    # What the data lack, a dry run may pass over.
    asked = commands("bad.yaml").filter(lambda words: "--dry-run" not in words)
    all_refused(st.builds(lambda words, text: Case(words=words, files={"bad.yaml": text}), asked, texts), 30)


@pytest.mark.parametrize("task", OWN)
def test_good_run_configs_are_accepted(ended, task):
    assert ended(Case(words=("train", f"{task}.yaml", "--dry-run"))).code == 0
    assert ended(Case(words=("train", f"{task}.yaml", "--out", "out"))).problem().startswith("exit code 0")


def test_published_configs(good, all_refused):
    def spoilt(name):
        file = f"published_{name}.yaml"
        data = data_of(good, file)
        top = st.sampled_from([key for key in data if key not in ("model_config", "decay_lr")])
        wrong = st.tuples(top, st.sampled_from(["x", "1", True, None, [1], {"a": 1}, float("nan"), -1e400]))
        inside = st.sampled_from(sorted(data["model_config"])).flatmap(
            lambda key: st.sampled_from(
                [(key, value) for value in ("x", [1], {"zzz": 1}, float("inf"), 2**70)]
            )
        )
        return st.one_of(
            wrong.map(lambda pair: {**data, pair[0]: pair[1]}),
            inside.map(lambda pair: with_value(data, ("model_config", pair[0]), pair[1])),
            words_like(data).map(lambda word: {**data, word: 1}),
            words_like(data["model_config"]).map(lambda word: with_value(data, ("model_config", word), 1)),
            top.map(lambda key: {name: value for name, value in data.items() if name != key}),
        ).map(dump_yaml) | unreadable((good / file).read_bytes(), "yaml")

    texts = st.sampled_from(PUBLISHED).flatmap(spoilt)
    words = ("train", "bad.yaml", "--dry-run")
    all_refused(texts.map(lambda text: Case(words=words, files={"bad.yaml": text})), 30)


@pytest.mark.parametrize("name", PUBLISHED)
def test_good_published_configs_are_read(good, name):
    assert load_run_config(good / f"published_{name}.yaml")


def bad_arms():
    arm = {"name": "a", "recipe": [RULE], "settings": {"lr": 0.1}}
    recipes = [recipe for recipe in BAD_RECIPES if recipe not in ("bert",) and not needs_a_model(recipe)]
    arms = [
        *({**arm, "recipe": recipe} for recipe in [*recipes, "brt"]),
        *({**arm, "name": name} for name in (*OUTSIDE["name"], 5, None, True, ["a"])),
        *({**arm, "settings": settings} for settings in (5, "x", [1], True)),
        {"recipe": []},
        5,
        "a",
        None,
        [],
    ]
    unknown = words_like(arm).map(lambda word: [{**arm, word: 1}])
    whole = st.sampled_from([[], {}, 5, "x", None, [arm, arm], [arm, {**arm, "name": "A"}], {"a": arm}])
    return st.sampled_from(arms).map(lambda arm: [arm]) | unknown | whole


def needs_a_model(recipe):
    """Return whether a recipe is wrong only beside a model, as a trial of the user's own has one."""
    if not isinstance(recipe, list) or len(recipe) != 1 or not isinstance(recipe[0], dict):
        return False
    rule = recipe[0]
    words = rule.get("select"), rule.get("layer")
    beside = rule.get("blocks") in ([99], [-1]) or {"heads", "shift", "penalty", "depth"} & rule.keys()
    known = all(isinstance(word, str) for word in words) and words[1] in layers.__all__
    return known and (bool(beside) or words[0] != "mlp_output")


def test_files_of_arms(good, all_refused):
    texts = bad_arms().map(dump_yaml) | unreadable((good / "arms.yaml").read_bytes(), "yaml")
    words = st.sampled_from(
        [
            ("compare", "finetune.py:train", "--arms", "bad.yaml", "--out", "out"),
            ("compare", "--run", "true {seed} {recipe}", "--arms", "bad.yaml", "--out", "out"),
            ("tune", "finetune.py:train", "--arms", "bad.yaml", "--space", "space.yaml", "--out", "out"),
        ]
    )
    all_refused(st.builds(lambda words, text: Case(words=words, files={"bad.yaml": text}), words, texts), 20)


def test_good_files_of_arms_are_read(good):
    place = str(good / "finetune.py:train")
    found = trial_configs(
        load_arms(good / "arms.yaml"), settings={}, steps=None, metric=None, function=place, command=None
    )
    assert [config.name for config in found] == ["a", "b"]


def bad_spaces():
    ranges = [
        *({"low": low, "high": 1.0} for low in ("0", None, True, [0], float("nan"), float("inf"), 1.0, 2.0)),
        *({"low": 0.1, "high": high} for high in ("1", None, True, float("nan"), float("inf"), 0.1)),
        *({"low": 0.0, "high": 1.0, "log": log} for log in (True, 1, "yes", None)),
        {"low": 0.1},
        {"low": 0.1, "high": 1.0, "zzz": 1},
        {"values": []},
        {"values": 5},
        *([], 5, "x", None, True, {}),
        ["fast"],
        [-1.0],
    ]
    spaces = [
        *({"settings": {"training.lr": search}} for search in ranges),
        *(
            {"settings": {key: [0.1]}}
            for key in ("training.lrr", "zzz", "training.lr.x", "recipe.7.p", "", ".")
        ),
        *({"settings": settings} for settings in (5, "x", [1], {}, None, True)),
        *({"methods": methods} for methods in ({"zzz": {}}, ["one"], 5, "x", {"tiny": 5}, {"tiny": [1]})),
        *({"parameters": entry} for entry in ({"lr": 5}, {"lr": {}}, {"lr": {"min": 1}}, 5, [1], None, {})),
        *([], 5, "x", None, {}),
    ]
    unknown = words_like(["settings", "methods", "parameters"]).map(lambda word: {word: 1})
    return st.sampled_from(spaces) | unknown


def test_spaces(good, all_refused):
    texts = bad_spaces().map(dump_yaml) | unreadable((good / "space.yaml").read_bytes(), "yaml")
    words = ("tune", "language.yaml", "--space", "bad.yaml", "--out", "out", "--trials", "2")
    all_refused(texts.map(lambda text: Case(words=words, files={"bad.yaml": text})), 30)


def test_good_spaces_are_read(good):
    assert read_methods(good / "space.yaml", [load_run_config(good / "language.yaml")])


def test_recipes(good, all_refused):
    recipes = [recipe for recipe in BAD_RECIPES if recipe != "bert"]
    texts = st.sampled_from(recipes).map(dump_yaml) | unreadable((good / "recipe.yaml").read_bytes(), "yaml")
    words = ("sites", "run", "--recipe", "bad.yaml")
    all_refused(texts.map(lambda text: Case(words=words, files={"bad.yaml": text})), 30)


def test_good_recipes_are_accepted(ended):
    assert ended(Case(words=("sites", "run", "--recipe", "recipe.yaml"))).code == 0


def test_configs_of_trials(good, tmp_path, all_refused):
    sound = TrialConfig(name="a", recipe=[RULE], function="finetune.py:train").to_data()
    wrong = [
        *((path, value) for path, value in wrong_values(TrialConfig)),
        *((("name",), name) for name in OUTSIDE["name"]),
        *((("seed",), seed) for seed in OUTSIDE["seed"]),
        *((("format",), number) for number in (2, 99)),
        *((("steps",), steps) for steps in (0, -1)),
        *((("recipe",), recipe) for recipe in BAD_RECIPES if not needs_a_model(recipe)),
    ]
    data = st.sampled_from(wrong).map(lambda pair: with_value(sound, *pair))
    unknown = words_like(sound).map(lambda word: {**sound, word: 1})
    texts = (data | unknown).map(dump_yaml) | unreadable(dump_yaml(sound).encode(), "yaml")
    path = tmp_path / "config.yaml"

    def problem(case):
        content = case.files["config.yaml"]
        if content == "a folder in place of the file":
            return None
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        try:
            return f"read as {load_trial_config(path)}"
        except InputError as error:
            return None if re.fullmatch(r"[^\n]{10,900}", str(error)) else f"no sentence: {error}"

    all_refused(texts.map(lambda text: Case(words=("-",), files={"config.yaml": text})), 30, problem)
    path.write_text(dump_yaml(sound))
    assert load_trial_config(path).to_data() == sound
