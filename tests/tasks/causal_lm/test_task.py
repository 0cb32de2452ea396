"""Fine-tuning language models: windows and pairs, in full and by LoRA, every arm."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from transformer_dropout.errors import InputError
from transformer_dropout.runs.default_arms import default_arms
from transformer_dropout.runs.loop import Training
from transformer_dropout.runs.processes import Processes
from transformer_dropout.runs.record import read_metrics
from transformer_dropout.runs.run import prepare, run

ALONE = Processes(rank=0, size=1, device=torch.device("cpu"))
SHORT = {
    "model.context": "12",
    "training.steps": "6",
    "training.eval_every": "3",
    "training.batch": "4",
    "training.warmup_steps": "1",
    "training.probe_windows": "8",
}


def arms(gpt2_dir, source, **changes):
    own = {"model.source": str(gpt2_dir), "data.source": str(source)}
    found = default_arms(
        "causal_lm", {**SHORT, **own, **{k.replace("__", "."): v for k, v in changes.items()}}
    )
    return {arm.name: arm for arm in found}


@pytest.fixture(params=["full", "lora"])
def configs(request, gpt2_dir, words_file):
    return arms(gpt2_dir, words_file, **({"model__lora": "2"} if request.param == "lora" else {}))


def test_every_arm_trains_resumes_and_is_read_once_on_its_test_split(tmp_path, configs):
    assert len(configs) == 7
    for name, config in configs.items():
        folder = tmp_path / config.slug()
        whole = run(config, folder)
        rows = read_metrics(folder / "metrics.jsonl")
        result = whole["result"]
        assert [row["tokens"] for row in rows] == [0, 3 * 4 * 12, 6 * 4 * 12]
        assert result["val_perplexity"] == pytest.approx(math.exp(result["val_loss"]))
        assert result["test_loss"] > 0
        assert (result["keep"] is not None) == (name == "learned")
        shutil.rmtree(folder / "checkpoints" / "step-00000006")
        (folder / "run.json").write_text(json.dumps(whole | {"status": "running"}))
        again = run(config, folder, resume=True)["result"]
        assert again | {"wall_seconds": 0} == result | {"wall_seconds": 0}


def test_lora_trains_its_matrices_alone_and_saves_them(tmp_path, gpt2_dir, words_file):
    config = arms(gpt2_dir, words_file, model__lora="2")["lora dropout"]
    record = run(config, tmp_path / "run")
    assert 0 < record["parameters"]["trained"] < record["parameters"]["total"] / 2
    assert (tmp_path / "run" / "model" / "adapter_model.safetensors").is_file()
    training = Training(config, prepare(config), ALONE)
    before = {name: value.clone() for name, value in training.whole_state().items()}
    for _ in range(6):
        training.advance()
    changed = [n for n, v in training.whole_state().items() if not v.equal(before[n])]
    assert changed and all(".lora_" in name for name in changed)


def test_without_a_rule_nothing_is_random(gpt2_dir, words_file):
    for lora in ({}, {"model__lora": "2"}):
        training = Training(config := arms(gpt2_dir, words_file, **lora)["none"], prepare(config), ALONE)
        training.model.train()
        batch = training.training_batch(0)
        assert training.objective(training.model, batch).equal(training.objective(training.model, batch))


def test_the_falling_dropout_falls(gpt2_dir, words_file):
    training = Training(config := arms(gpt2_dir, words_file)["falling"], prepare(config), ALONE)
    rates = []
    for step in (0, 3, 6):
        training.set_progress(step)
        found = training.regularization.metrics()
        rates.append({round(value, 6) for name, value in found.items() if name.startswith("p/")})
    assert rates == [{0.1}, {0.05}, {0.0}]


def test_only_answers_are_learned(gpt2_dir, pairs_file):
    config = arms(gpt2_dir, pairs_file, model__context="20")["none"]
    training = Training(config, prepare(config), ALONE)
    examples = training.splits.train.examples[:3]
    batch = training.task.batch(training.splits.train, range(3))
    logits = training.model.eval()(**batch.inputs).logits
    losses = []
    for row, example in enumerate(examples):
        for at in range(example.prompt, len(example.ids)):
            losses.append(F.cross_entropy(logits[row, at - 1], torch.tensor(example.ids[at])))
    assert batch.items == len(losses) == sum(len(e.ids) - e.prompt for e in examples)
    torch.testing.assert_close(training.task.loss(training.model, batch), torch.stack(losses).mean())


def test_every_predicted_token_weighs_the_same_whatever_the_accumulation(gpt2_dir, pairs_file):
    config = arms(gpt2_dir, pairs_file, model__context="20", training__batch="8")["none"]
    parts = replace(config, training=replace(config.training, batch=2, accumulation=4))
    one, four = (Training(c, prepare(c), ALONE) for c in (config, parts))
    one.advance()
    four.advance()
    assert one.items == four.items
    assert four.loss.item() == pytest.approx(one.loss.item(), rel=1e-5)
    for name, value in one.whole_state().items():
        torch.testing.assert_close(four.whole_state()[name], value, rtol=1e-4, atol=1e-6)


def test_what_was_trained_is_a_model_of_transformers(tmp_path, gpt2_dir, words_file):
    config = arms(gpt2_dir, words_file)["dropout"]
    run(config, tmp_path / "run")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    start = AutoModelForCausalLM.from_pretrained(gpt2_dir)
    assert not model.lm_head.weight.equal(start.lm_head.weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__source": "''"}, "name its folder with --model DIR"),
        ({"model__source": "nowhere"}, "nowhere holds no pre-trained model"),
        ({"model__lora": "0"}, "model.lora is 0"),
        ({"model__context": "33"}, "model.context is 33, but the model has 32 positions"),
        ({"data__source": "nothing.txt"}, "There is no file or folder nothing.txt"),
        ({"data__source": "nothing.jsonl"}, "nothing.jsonl cannot be read"),
        ({"data__train_examples": "100000"}, "use --set data.train_examples="),
        ({"data__held_out": "1.5"}, "data.held_out is 1.5"),
    ],
)
def test_what_does_not_fit_is_one_sentence(gpt2_dir, words_file, changes, message):
    with pytest.raises(InputError, match=message):
        arms(gpt2_dir, words_file, **changes)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "why"}', ":1: this is no pair"),
        ('{"prompt": "why", "answer": 3}', ":1: this is no pair"),
        ("not json", ":1: this is no pair"),
        (json.dumps({"prompt": "why " * 30, "answer": "one"}), "have 32 tokens, and 13 fit"),
    ],
)
def test_a_line_that_is_no_pair_is_named(tmp_path, gpt2_dir, line, message):
    (tmp_path / "pairs.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match=message):
        arms(gpt2_dir, tmp_path / "pairs.jsonl")
