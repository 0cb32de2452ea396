"""Files that a command reads, damaged or of another kind: records, models, tokenizers, data."""

import json
import re
from functools import partial

import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save
from torch import nn

import transformer_dropout as td
from tests.bad_inputs.cases import FOLDER, Case, unreadable, with_value
from tests.bad_inputs.test_configs import BAD_RECIPES
from transformer_dropout.errors import InputError
from transformer_dropout.yaml_file import dump_yaml

TEXTS = (5, True, [1], {"a": 1}, None)
SECTIONS = (5, "x", True, [1])
NUMBERS = ("x", "1", True, [1], {"a": 1}, 1.5)
RECORD = [
    *((("name",), value) for value in (*TEXTS, "")),
    *((("seed",), value) for value in (*NUMBERS, None, -1)),
    *((("status",), value) for value in TEXTS),
    *((("format",), value) for value in (2, 99)),
    *(((key,), value) for key in ("task", "config", "data", "versions", "machine") for value in SECTIONS),
    *(((key,), value) for key in ("parameters", "flops", "result") for value in SECTIONS),
    *(((key,), value) for key in ("alarms", "notes") for value in (5, "x", True, [1], {"a": 1})),
    (("error",), 5),
    *((("task", "metrics"), value) for value in (None, 5, "x", [5], [{}], [{"name": ""}], [{"name": 5}])),
    (("task", "metrics"), [{"name": "loss", "better": "more"}]),
    (("task", "name"), 5),
    *((("config", "training"), value) for value in SECTIONS),
    *((("config", "training", "weight_decay"), value) for value in ("x", {"zzz": 1}, [1])),
]
COMPARISON = [
    *((("arms",), value) for value in ([], None, 5, "one", [5], {"one": 1}, [""])),
    *((("seeds",), value) for value in (None, 5, "0", ["0"], [0.5], [True], {"0": 1})),
    *((("reference",), value) for value in ("zzz", 5, ["one"], True)),
    *((("difference",), value) for value in (0, -1.0, "0.1", True, float("nan"), float("inf"))),
    *((("format",), value) for value in (2, 99)),
    *((("command",), value) for value in (5, ["x"])),
]
DECODER = [
    *((("model_type",), value) for value in ("zzz", "", 5, None, ["gpt2"])),
    *((("vocabulary_size",), value) for value in (0, -1, "9", 1.5, None, True, 10**12, 10**30, [9], 3)),
    *((("width",), value) for value in (0, -16, "16", 1.5, None, True, 10**9, 10**30, 3, 8)),
    *((("heads",), value) for value in (0, -1, "2", 3, 1.5, None, True)),
    *((("blocks",), value) for value in (0, -1, "1", 1.5, None, True, 10**9, 2)),
    *((("context",), value) for value in (0, -1, "16", 1.5, None, True, 10**12, 8)),
    *((("bias",), value) for value in ("yes", 1, None, True)),
    (("zzz",), 1),
]
REPORTS = (("report", "comparison"), ("report", "run"))
READERS = (("generate", "run", "--tokens", "3"), ("audit", "run"), ("sites", "run"))


def spoilt(words, file, content):
    return Case(words=words, files={file: content})


def spoilt_json(good, file, pairs, words):
    """Draw a JSON file in which a value is wrong or a key is missing, or which is no JSON."""
    data = json.loads((good / file).read_text())
    texts = st.sampled_from(pairs).map(lambda pair: json.dumps(with_value(data, *pair)))
    return st.builds(
        partial(spoilt, file=file), words, content=texts | unreadable((good / file).read_bytes(), "json")
    )


def test_good_files_are_accepted(ended):
    for words in (*REPORTS, *READERS):
        assert ended(Case(words=words)).code == 0


def test_records_of_runs(good, all_refused):
    one = spoilt_json(good, "run/run.json", RECORD, st.just(("report", "run")))
    place = "comparison/runs/one/seed-0/run.json"
    all_refused(one | spoilt_json(good, place, RECORD, st.just(("report", "comparison"))), 25)


def test_records_of_comparisons(good, all_refused):
    cases = spoilt_json(good, "comparison/comparison.json", COMPARISON, st.just(("report", "comparison")))
    all_refused(cases, 20)


def test_rows_of_metrics(good, all_refused):
    row = '{"step": 9, "val_loss": 1.0}\n'
    lines = [
        "x",
        "[]",
        "5",
        "{",
        "{}",
        '{"step": "1"}',
        '{"step": -1}',
        '{"step": 1.5}',
        '{"step": true}',
        "[" * 5000,
    ]
    lines += [
        '{"step": null}',
        '{"val_loss": 1.0}',
        '{"step": 1, }',
        '{"step": 1} {"step": 2}',
        "\x00",
        '{"step": 1',
    ]
    cases = []
    for words, file in zip(
        REPORTS, ("comparison/runs/other/seed-0/metrics.jsonl", "run/metrics.jsonl"), strict=True
    ):
        text = (good / file).read_text()
        # The last line may be half of one; every other is whole.
        cases += [spoilt(words, file, f"{text}{line}\n{row}") for line in lines] + [
            spoilt(words, file, FOLDER)
        ]
    all_refused(st.sampled_from(cases), 20)


def test_configs_of_saved_models(good, all_refused):
    all_refused(spoilt_json(good, "run/model/config.json", DECODER, st.sampled_from(READERS)), 25)


def spoilt_tensors(file):
    """Draw safetensors in which one tensor is of another kind, shape or name, or is no number."""
    tensors = load_file(file)

    def with_tensor(name, kind):
        changed, tensor = dict(tensors), tensors[name]
        changes = {
            "missing": lambda: changed.pop(name),
            "renamed": lambda: changed.update({f"{name}_": changed.pop(name)}),
            "whole": lambda: changed.update({name: tensor.to(torch.int64)}),
            "complex": lambda: changed.update({name: tensor.to(torch.complex64)}),
            "longer": lambda: changed.update({name: torch.cat([tensor, tensor])}),
            "flat": lambda: changed.update({name: tensor.reshape(-1, 1, 1)}),
            "nan": lambda: changed.update({name: torch.full_like(tensor, torch.nan)}),
            "infinite": lambda: changed.update({name: torch.full_like(tensor, -torch.inf)}),
            "more": lambda: changed.update({"zzz": tensor.clone()}),
        }
        changes[kind]()
        return save(changed)

    kinds = ["missing", "renamed", "whole", "complex", "longer", "flat", "nan", "infinite", "more"]
    drawn = st.builds(with_tensor, st.sampled_from(sorted(tensors)), st.sampled_from(kinds))
    return drawn | unreadable(file.read_bytes(), "binary") | st.sampled_from(bad_headers())


def bad_headers():
    """Return safetensors whose headers promise what is not there."""
    headers = [
        b"[]",
        b'{"a": 5}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 99]}}',
        b'{"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1000000000000], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        b"\xff\xfe",
    ]
    whole = [len(header).to_bytes(8, "little") + header + b"\0" * 4 for header in headers]
    return [*whole, (2**63).to_bytes(8, "little") + b"{}", (10**9).to_bytes(8, "little") + b"{}"]


def test_weights_of_saved_models(good, all_refused):
    file = "run/model/model.safetensors"
    all_refused(
        st.builds(partial(spoilt, file=file), st.sampled_from(READERS), content=spoilt_tensors(good / file)),
        40,
    )


def test_recipes_beside_saved_models(good, all_refused):
    file = "run/model/regularization.yaml"
    recipes = [recipe for recipe in BAD_RECIPES if recipe != "bert"]
    contents = (
        st.sampled_from(recipes).map(dump_yaml) | unreadable((good / file).read_bytes(), "yaml") | st.none()
    )
    all_refused(st.builds(partial(spoilt, file=file), st.sampled_from(READERS), content=contents), 20)


def test_tokenizers_beside_saved_models(good, all_refused):
    spec, library = "run/model/tokenizer_spec.json", "run/model/tokenizer.json"
    wrong = [(("tokenizer",), value) for value in ("zzz", "", 5, None, ["chars"], True, "bytes", "bpe:x")]
    generate = st.just(READERS[0])
    vocabulary = json.loads((good / library).read_text())
    kinds = [(("model",), value) for value in (5, {}, None, {"type": "zzz"})] + [
        (("model", "vocab"), {"a": 0})
    ]
    missing = st.sampled_from([Case(words=READERS[0], files={name: None}) for name in (spec, library)])
    cases = spoilt_json(good, spec, wrong, generate) | spoilt_json(good, library, kinds, generate) | missing
    assert vocabulary["model"]["vocab"]
    all_refused(cases, 30)


def test_files_of_images(good, all_refused):
    files = [
        f"images/{use}-{what}"
        for use in ("train", "t10k")
        for what in ("images-idx3-ubyte", "labels-idx1-ubyte")
    ]

    def spoilt_file(file):
        sound = (good / file).read_bytes()
        other = (good / files[1 - files.index(file) % 2]).read_bytes()
        headers = [
            b"\0\0\x08\x03" + b"\xff" * 12,
            b"\0\0\x08\x01" + b"\xff" * 4,
            b"\0\0\x0d\x03" + sound[4:],
            sound + b"\0",
        ]
        damaged = [*headers, sound[:4], other, b"\x1f\x8b" + sound, b"\x1f\x8b", None]
        return (unreadable(sound, "binary") | st.sampled_from(damaged)).map(
            lambda content: spoilt(("train", "images.yaml", "--out", "out"), file, content)
        )

    all_refused(st.sampled_from(files).flatmap(spoilt_file), 25)


def test_tables(good, all_refused):
    text = (good / "table.csv").read_text()
    lines = [
        "1,2",
        "1,2,3,4",
        "1,x,3",
        "1,,3",
        "1,nan,3",
        "1,inf,3",
        "1,1e999,3",
        '1,"2,3',
        "\x00,1,2",
        "1,2,3;4",
    ]
    ends = [f"{text}{line}\n1,2,3\n" for line in lines]
    whole = [
        "",
        "\n",
        "a,b,c\n",
        "a,b,c\n1,2,3\n",
        "a\n1\n2\n3\n",
        "1,2,3\n" * 60,
        text.replace("a,b", "a,a"),
        "a,b,c\n" + "1,2,3\n" * 60,
    ]
    contents = st.sampled_from([*ends, *whole, None]) | unreadable(text.encode(), "text")
    words = ("train", "regression.yaml", "--out", "out/new")
    all_refused(contents.map(lambda content: spoilt(words, "table.csv", content)), 25)


def test_texts(good, all_refused):
    sound = (good / "text.txt").read_bytes()
    contents = unreadable(sound, "text").filter(lambda content: content != FOLDER) | st.sampled_from(
        [b"", b"\n \n", b"short", None]
    )
    words = st.sampled_from(
        [("train", "language.yaml", "--out", "out"), ("compare", "language.yaml", "--out", "out")]
    )
    all_refused(st.builds(partial(spoilt, file="text.txt"), words, content=contents), 20)


def test_journals_of_searches(all_refused):
    lines = [
        "x\n{}\n",
        "[]\n{}\n",
        "5\n5\n",
        "{}\n{}\n",
        '{"op_code": 99}\n{}\n',
        '{"op_code": "x"}\n{}\n',
        "\x00\n\x00\n",
    ]
    words = ("tune", "language.yaml", "--out", "search", "--trials", "2")
    cases = [spoilt(words, "search/study.journal", line) for line in lines]
    all_refused(st.sampled_from([*cases, spoilt(words, "search/notes.txt", "mine")]), 7)


@pytest.fixture
def regularized(tmp_path):
    """A folder of a small model with learned layers, and a function that makes the model anew."""

    def make():
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    rule = td.Rule("mlp_output", td.layers.LearnedDropout, heads=2)
    td.save_regularized(tmp_path / "saved", td.regularize_(make(), td.Recipe([rule])))
    return tmp_path / "saved", make


def test_regularized_models(regularized, all_refused):
    folder, make = regularized
    weights, recipe = folder / "regularization.safetensors", folder / "regularization.yaml"
    sound = {path.name: path.read_bytes() for path in (weights, recipe)}
    cases = spoilt_tensors(weights).map(lambda content: spoilt((), weights.name, content))
    texts = st.sampled_from([recipe for recipe in BAD_RECIPES if recipe != "bert"]).map(dump_yaml)
    cases |= (texts | unreadable(sound[recipe.name], "yaml")).map(lambda text: spoilt((), recipe.name, text))

    def problem(case):
        ((name, content),) = case.files.items()
        if content == FOLDER:
            return None
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        model = make()
        try:
            td.load_regularized(folder, model)
            return f"loaded {case}"
        except InputError as error:
            if [type(module) for module in model.modules()] != [type(module) for module in make().modules()]:
                return "the model is not as it was"
            return None if re.fullmatch(r"[^\n]{10,600}", str(error)) else f"no sentence: {error}"
        finally:
            (folder / name).write_bytes(sound[name])

    all_refused(cases, 40, problem)
    assert td.load_regularized(folder, make()).placed
