"""Checkpoints that are damaged, which a run does without, and configs of other people's models."""

import json
import shutil
from functools import partial

from hypothesis import strategies as st

from tests.bad_inputs.cases import FOLDER, Case, unreadable, with_value
from tests.bad_inputs.test_files import spoilt, spoilt_tensors
from transformer_dropout.runs.files import write_json
from transformer_dropout.runs.record import read_run


def test_damaged_checkpoints_are_said_and_done_without(good, tmp_path, all_refused, ended):
    newest = max((good / "run" / "checkpoints").glob("step-*")).name
    files = [f"unfinished/checkpoints/{newest}/{name}" for name in ("state.json", "model.safetensors")]
    shutil.copytree(good / "run", good / "unfinished")
    write_json(good / "unfinished" / "run.json", read_run(good / "run") | {"status": "running"})
    words = ("train", "language.yaml", "--out", "unfinished", "--resume")
    state = unreadable((good / files[0]).read_bytes(), "json")
    state |= st.sampled_from([(("step",), 5), (("run",), "x"), (("digests",), {}), (("state",), {})]).map(
        lambda pair: json.dumps(with_value(json.loads((good / files[0]).read_text()), *pair))
    )
    # A folder in the place of its folder would be no checkpoint at all.
    cases = [
        st.builds(partial(spoilt, words, files[0]), state | st.none()),
        st.builds(partial(spoilt, words, files[1]), spoilt_tensors(good / files[1]) | st.none()),
    ]

    def problem(case):
        found = ended(case)
        continued = "Continuing from step 2." in found.out or "starting from step 0" in found.out
        if found.code or found.err or not continued or newest not in found.out:
            return f"exit code {found.code}: {found.err}{found.out}"
        return None

    try:
        all_refused(st.one_of(cases), 15, problem)
    finally:
        shutil.rmtree(good / "unfinished")


def test_configs_of_other_models(good, all_refused, ended):
    sound = {
        "model_type": "gpt2",
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 8,
        "vocab_size": 50,
        "resid_pdrop": 0.1,
    }
    assert ended(
        Case(words=("audit", "hf/config.json"), files={"hf/config.json": json.dumps(sound)})
    ).code in (0, 1)
    wrong = [
        *((("model_type",), value) for value in ("zzz", "", 5, None, ["gpt2"], True)),
        *((("resid_pdrop",), value) for value in ("x", -0.1, 1.5, [0.1], {"a": 1})),
        *((("auto_map",), value) for value in ({"AutoModel": "x.y"}, "x")),
        *((("n_inner",), value) for value in ("x", [1], {"a": 1})),
        *((("activation_function",), value) for value in ("zzz", 5, [1])),
    ]
    texts = st.sampled_from(wrong).map(lambda pair: json.dumps(with_value(sound, *pair)))
    texts |= unreadable(json.dumps(sound).encode(), "json").filter(lambda content: content != FOLDER)
    words = st.sampled_from([("audit", "hf/config.json"), ("sites", "hf/config.json"), ("audit", "hf")])
    all_refused(st.builds(partial(spoilt, file="hf/config.json"), words, content=texts), 20)


def test_folders_of_pretrained_models(good, all_refused):
    wrong = [
        *((("model_type",), value) for value in ("zzz", "", 5, None, "llama")),
        *((("vocab_size",), value) for value in (0, -1, "x", 10**12)),
    ]

    def spoilt_folder(task, source):
        words = st.just(("train", f"{task}.yaml", "--out", "out"))
        cases = []
        for name, kind in (
            ("config.json", "json"),
            ("tokenizer.json", "json"),
            ("model.safetensors", "binary"),
        ):
            file = f"{source}/{name}"
            contents = unreadable((good / file).read_bytes(), kind) | st.none()
            if name == "config.json":
                data = json.loads((good / file).read_text())
                contents |= st.sampled_from(wrong).map(
                    lambda pair, data=data: json.dumps(with_value(data, *pair))
                )
            cases.append(st.builds(partial(spoilt, file=file), words, content=contents))
        return st.one_of(cases)

    all_refused(spoilt_folder("sentences", "bert") | spoilt_folder("causal_lm", "gpt2"), 40)


def test_classes_of_sentences_and_pairs(good, all_refused):
    words = ("train", "sentences.yaml", "--out", "out")
    sound = (good / "neg.txt").read_bytes()
    contents = unreadable(sound, "text") | st.sampled_from(
        [b"", b"\n \n", None, (good / "pos.txt").read_bytes()]
    )
    lines = [
        '{"prompt": "a"}',
        '{"prompt": 5, "answer": "b"}',
        "[]",
        "{",
        '{"prompt": "a", "answer": ""}',
        "\0",
    ]
    pairs = ("train", "causal_lm.yaml", "--set", "data.source=pairs.jsonl", "--out", "out")
    cases = [
        st.builds(partial(spoilt, words, "neg.txt"), contents),
        st.sampled_from(lines).map(lambda line: spoilt(pairs, "pairs.jsonl", f"{line}\n")),
    ]
    all_refused(st.one_of(cases), 20)
