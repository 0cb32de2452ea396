"""Runs of sentences: every arm trains and records; the arms of a seed share what they must."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from transformer_dropout.errors import InputError
from transformer_dropout.runs.default_arms import default_arms
from transformer_dropout.runs.loop import Training
from transformer_dropout.runs.processes import Processes
from transformer_dropout.runs.record import read_metrics, read_run
from transformer_dropout.runs.run import prepare, run
from transformer_dropout.runs.run_config import load_run_config

ARMS = ["none", "bert", "adaptive", "layerwise", "learned", "rdrop", "l2sp"]
ALONE = Processes(rank=0, size=1, device=torch.device("cpu"))


def training_of(config):
    return Training(config, prepare(config), ALONE)


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_trains_and_records(tmp_path, configs, arm):
    record = run(configs[arm], tmp_path / "run")
    assert record == read_run(tmp_path / "run")
    assert (record["status"], record["name"], record["seed"]) == ("finished", arm, 0)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [(row["step"], row["sentences"], row["epochs"]) for row in rows] == [
        (0, 0, 0),
        (3, 24, 1),
        (6, 48, 2),
    ]
    result = record["result"]
    assert result["evaluation_bit_equal"] is True
    assert result["val_loss"] == rows[-1]["val_loss"]
    for name in ("train_loss", "val_loss", "test_loss"):
        assert 0 < result[name] < 2
    for name in ("train_accuracy", "val_accuracy", "test_accuracy"):
        assert 0 <= result[name] <= 1
    assert all(math.isfinite(row["penalty"]) for row in rows)
    assert (rows[-1]["penalty"] > 0) == (arm in ("learned", "l2sp"))
    assert (result["keep"] is not None) == (arm == "learned")
    assert record["data"]["train"]["documents"] == 24
    assert record["task"]["metrics"][0]["name"] == "loss"
    assert record["flops"]["training_per_sentence"] > 2 * record["flops"]["inference_per_sentence"] > 0


def test_arms_of_a_seed_share_weights_and_order_and_seeds_do_not(configs):
    runs = [training_of(configs[arm]) for arm in ARMS]
    other = training_of(replace(configs["none"], seed=1))
    first = dict(runs[0].model.named_parameters())
    for one in runs[1:]:
        assert one.training_batch(0).targets.equal(runs[0].training_batch(0).targets)
        own = dict(one.model.named_parameters())
        assert all(torch.equal(own[name], value) for name, value in first.items())
    assert (
        not other.training_batch(0).inputs["input_ids"].equal(runs[0].training_batch(0).inputs["input_ids"])
    )
    assert not torch.equal(other.model.classifier.weight, first["classifier.weight"])


def test_training_lowers_the_loss(tmp_path, changed):
    run(changed("none", steps=60, eval_every=60, lr=1e-2), tmp_path / "run")
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] / 2


@pytest.mark.parametrize("arm", ["learned", "l2sp", "rdrop"])
def test_a_stopped_run_goes_on_and_ends_as_the_one_that_was_not(tmp_path, configs, arm):
    whole = run(configs[arm], tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "step-00000006")
    (tmp_path / "stopped" / "run.json").write_text(json.dumps(whole | {"status": "running"}))
    again = run(configs[arm], tmp_path / "stopped", resume=True)
    assert again["result"] | {"wall_seconds": 0} == whole["result"] | {"wall_seconds": 0}
    model = "model/model.safetensors"
    assert (tmp_path / "stopped" / model).read_bytes() == (tmp_path / "whole" / model).read_bytes()


def test_accumulated_batches_give_the_step_of_one_batch(configs, changed):
    whole, parts = (
        training_of(changed("none", batch=8)),
        training_of(changed("none", batch=4, accumulation=2)),
    )
    gradients = []
    for training in (whole, parts):
        # Adam's first step is as long for a gradient of 1e-12 as for one of 1.
        own = dict(training.model.named_parameters())
        training.optimizer.step = lambda own=own: gradients.append(
            {n: p.grad.clone() for n, p in own.items()}
        )
        training.advance()
    assert parts.loss.item() == pytest.approx(whole.loss.item(), rel=1e-5)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_the_pull_is_to_the_pretrained_weights_and_leaves_the_head_to_zero(configs):
    training = training_of(configs["l2sp"])
    pull = training.weight_penalties.terms["l2_sp"]
    assert pull.new == ["classifier.weight"]
    head = training.model.classifier.weight
    assert pull().item() == pytest.approx(0.01 * head.square().sum().item() / 2)
    weight = training.model.bert.encoder.layer[0].output.dense.weight
    with torch.no_grad():
        weight += 1.0
        head.zero_()
    assert pull().item() == pytest.approx(0.01 * weight.numel() / 2, rel=1e-4)


def test_without_noise_rdrop_is_the_cross_entropy(configs, changed):
    plain = training_of(configs["none"])
    doubled = training_of(replace(configs["none"], training=changed("rdrop").training))
    batch = plain.training_batch(0)
    losses = [one.objective(one.model.train(), batch) for one in (plain, doubled)]
    torch.testing.assert_close(*losses)


def test_the_trained_classifier_is_one_of_transformers(tmp_path, configs):
    run(configs["bert"], tmp_path / "run")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    assert model.num_labels == 2
    assert (tmp_path / "run" / "model" / "tokenizer.json").is_file()


def test_a_config_survives_its_file(tmp_path, configs):
    path = tmp_path / "config.yaml"
    path.write_text(configs["learned"].to_yaml(), encoding="utf-8")
    assert load_run_config(path) == configs["learned"]
    path.write_text(configs["learned"].to_yaml().replace("max_tokens", "max_tokns"), encoding="utf-8")
    with pytest.raises(InputError, match=r"unknown key 'model.max_tokns'. Did you mean 'max_tokens'"):
        load_run_config(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data.train_sentences": "0"}, "data.train_sentences is 0"),
        ({"data.train_sentences": "500"}, "need 250; use --set data.train_sentences="),
        ({"model.source": "nowhere/at/all"}, "nowhere/at/all holds no pre-trained model"),
        ({"data.classes.neg": "missing.txt"}, "missing.txt, cannot be read"),
        ({"model.max_tokens": "0"}, "model.max_tokens is 0"),
    ],
)
def test_what_does_not_fit_is_said(model_dir, class_paths, change, message):
    own = {f"data.classes.{name}": str(path) for name, path in class_paths.items()}
    with pytest.raises(InputError, match=message):
        default_arms("sentences", {"model.source": str(model_dir), **own, **change})


def test_a_model_without_weights_or_tokenizer_is_refused(tmp_path, model_dir, class_paths):
    own = {f"data.classes.{name}": str(path) for name, path in class_paths.items()}
    for missing, message in (("model.safetensors", "no weights"), ("tokenizer.json", "tokenizer")):
        folder = tmp_path / missing
        shutil.copytree(model_dir, folder)
        (folder / missing).unlink()
        with pytest.raises(InputError, match=message):
            default_arms("sentences", {"model.source": str(folder), **own})
