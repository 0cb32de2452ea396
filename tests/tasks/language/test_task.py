"""The language task: the committed record is that of its code, and a smaller text gives smaller arms."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from transformer_dropout.errors import InputError
from transformer_dropout.runs.default_arms import default_arms
from transformer_dropout.runs.record import read_metrics, read_run
from transformer_dropout.runs.run import run
from transformer_dropout.runs.run_config import RunConfig, load_run_config
from transformer_dropout.tasks.language import Language

RECORD = Path(__file__).parents[3] / "experiments" / "default" / "runs"


def test_the_default_arms_have_the_fingerprints_of_the_committed_record():
    for arm in default_arms("language", {}):
        for seed in range(3):
            folder = RECORD / arm.slug() / f"seed-{seed}"
            own = replace(arm, seed=seed)
            assert read_run(folder)["fingerprint"] == own.fingerprint()
            assert load_run_config(folder / "config.yaml") == own


@pytest.mark.slow
@pytest.mark.parametrize(("arm", "apart"), [("dropout p=0.1", 1e-4), ("LearnedDropout", 0.02)])
def test_a_fresh_run_has_the_losses_of_the_committed_record(tmp_path, arm, apart):
    (config,) = [config for config in default_arms("language", {}) if config.name == arm]
    short = replace(config, training=replace(config.training, steps=125, decay_steps=1000))
    run(short, tmp_path / "run")
    fresh = read_metrics(tmp_path / "run" / "metrics.jsonl")
    recorded = read_metrics(RECORD / config.slug() / "seed-0" / "metrics.jsonl")
    if read_run(tmp_path / "run")["data"]["train_sha256"] != record_of(config)["data"]["train_sha256"]:
        pytest.skip("this Python has other docstrings than the record")
    for ours, theirs in zip(fresh, recorded[:2], strict=True):
        for key in ("train_loss", "val_loss", "lr", "tokens"):
            # Processors differ in the last digits of a float32 product, which 125 steps add up to this.
            far = 1e-6 if ours["step"] == 0 else apart
            assert ours[key] == pytest.approx(theirs[key], rel=far), (key, ours["step"])


def record_of(config):
    return json.loads((RECORD / config.slug() / "seed-0" / "run.json").read_text())


def test_of_a_small_text_the_default_arms_take_what_there_is(text_file):
    arms = default_arms("language", {"data.source": str(text_file)})
    data = arms[0].data
    assert data.train_tokens + data.validation_tokens <= text_file.stat().st_size + 2
    assert data.validation_tokens > 500
    assert {arm.data for arm in arms} == {data}


def test_a_key_of_the_users_own_is_kept(text_file):
    arms = default_arms("language", {"data.source": str(text_file), "data.train_tokens": "2000"})
    assert {arm.data.train_tokens for arm in arms} == {2000}


def test_a_test_split_lies_behind_the_validation_tokens(tiny, tmp_path):
    config = tiny()
    data = replace(config.data, validation_tokens=300, test_tokens=200)
    splits = Language().prepare(config.model, data, None)
    whole = Language().prepare(config.model, replace(config.data, validation_tokens=None), None)
    assert np.array_equal(splits.test.tokens, whole.validation.tokens[300:500])
    record = run(replace(config, data=data), tmp_path / "run")
    assert record["result"]["test_loss"] > 0
    assert record["data"]["test"]["tokens"] == 200
    assert "test_loss" not in run(config, tmp_path / "without")["result"]


def test_terms_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="trains from random ones"):
        RunConfig(training=replace(RunConfig().training, l2_sp=0.1))
    with pytest.raises(InputError, match="do not go together"):
        RunConfig(training=replace(RunConfig().training, rdrop=1.0, label_smoothing=0.1))


def test_rdrop_trains_and_doubles_nothing_that_is_measured(tmp_path, tiny, learned):
    record = run(tiny(recipe=learned, rdrop="0,2"), tmp_path / "rdrop")
    plain = run(tiny(recipe=learned), tmp_path / "plain")
    first = [read_metrics(tmp_path / name / "metrics.jsonl")[0] for name in ("rdrop", "plain")]
    assert first[0]["val_loss"] == first[1]["val_loss"]
    assert record["result"]["val_loss"] != plain["result"]["val_loss"]
    assert record["result"]["tokens"] == plain["result"]["tokens"]
