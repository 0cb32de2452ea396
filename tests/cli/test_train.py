"""``dropout train`` and ``dropout generate``."""

import inspect
import json
import re
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from transformer_dropout import layers
from transformer_dropout.runs.checkpoint import checkpoint_folders
from transformer_dropout.runs.record import read_metrics, read_run
from transformer_dropout.runs.run import run


def test_a_dry_run_prints_the_numbers_and_writes_nothing(here, snapshot, config_file, tiny, learned):
    path = config_file(tiny(recipe=learned))
    before = snapshot()
    result = here("train", path, "--dry-run")
    assert result.code == 0
    numbers = dict(re.findall(r"│ (.+?) +│ +(.+?) │", result.out))
    assert numbers["parameters"] == "8,256"
    assert numbers["parameters without the positional embedding"] == "8,000"
    assert numbers["parameters of the recipe's layers"] == "784"
    assert numbers["vocabulary"] == "256"
    assert numbers["training tokens"] == f"{20 * 4 * 16:,}"
    assert float(numbers["passes over the training data"]) == pytest.approx(0.2, abs=0.05)
    assert "estimated memory" in numbers
    assert snapshot() == before


def test_brackets_in_a_name_are_shown_as_they_are(here, config_file, tiny):
    path = config_file(tiny("[/red] p=[a]", steps=1))
    assert "[/red] p=[a]" in here("train", path, "--dry-run").out
    assert here("train", path, "--out", "out[b]").code == 0


def test_a_dry_run_of_a_published_config_needs_no_tokenizer_files(here):
    path = Path(__file__).parents[2] / "configs" / "published" / "with_penalty.yaml"
    result = here("train", path, "--dry-run", "--set", "model.blocks=2")
    assert result.code == 0
    assert "50,257" in result.out


def test_a_run_then_its_text(command, here, tmp_path, config_file, tiny, learned):
    result = command(
        "train", config_file(tiny(recipe=learned)), "--out", "out", "--seed", "3", "--steps", "30"
    )
    assert result.code == 0, result.err
    record = read_run(tmp_path / "out")
    assert (record["status"], record["seed"], record["result"]["step"]) == ("finished", 3, 30)
    assert f"val loss {record['result']['val_loss']:.4f}" in result.out
    assert "dropout generate out" in result.out
    arguments = ("generate", "out", "--prompt", "The cat", "--tokens", "30")
    greedy = [here(*arguments, "--temperature", "0").out for _ in range(2)]
    assert greedy[0] == greedy[1]
    assert greedy[0].startswith("The cat")
    seeds = [here(*arguments, "--seed", seed).out for seed in (0, 0, 1)]
    assert seeds[0] == seeds[1] != seeds[2]
    assert here(*arguments, "--sample-masks").code == 0
    assert command(*arguments, "--temperature", "0").out == greedy[0]


def test_sampling_masks_of_a_run_without_masks_is_refused(here, tmp_path, tiny):
    run(tiny(steps=1), tmp_path / "out")
    result = here("generate", "out", "--sample-masks")
    assert result.code == 2
    assert result.err.startswith("error: --sample-masks needs a run with learned masks")


def test_text_of_an_unfinished_run_says_how_to_finish_it(here, tmp_path, tiny):
    run(tiny(steps=1), tmp_path / "out")
    (tmp_path / "out" / "model" / "model.safetensors").unlink()
    result = here("generate", "out")
    assert result.code == 2
    assert "dropout train out/config.yaml --out out --resume" in result.err


def test_without_out_the_run_goes_where_its_name_and_seed_say(here, tmp_path, config_file, tiny):
    assert here("train", config_file(tiny("My arm", steps=1)), "--seed", "4").code == 0
    assert (tmp_path / "runs" / "my-arm" / "seed-4" / "run.json").exists()


def test_a_finished_run_resumed_says_so(here, tmp_path, config_file, tiny):
    run(tiny(), tmp_path / "out")
    result = here("train", config_file(tiny()), "--out", "out", "--resume")
    assert result.code == 0
    assert "nothing to do" in result.out


def test_ctrl_c_saves_and_says_how_to_continue(start, here, tmp_path, config_file, tiny, learned):
    config = tiny(recipe=learned, steps=120, eval_every=5)
    process = start("train", config_file(config), "--out", "out")
    while not (tmp_path / "out" / "checkpoints" / "step-00000005").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    step = int(checkpoint_folders(tmp_path / "out" / "checkpoints")[0].name.removeprefix("step-"))
    assert f"Saved at step {step}" in out
    assert here("train", tmp_path / "my.yaml", "--out", "out", "--resume").code == 0
    run(config, tmp_path / "whole")
    ours, theirs = (
        [json.dumps(row["val_loss"]) for row in read_metrics(tmp_path / name / "metrics.jsonl")]
        for name in ("out", "whole")
    )
    assert ours == theirs


def rule_of(name):
    """Return a rule for a layer as a run config writes it, at a place that takes it."""
    kind = getattr(layers, name)
    place = "attention_weights" if kind.acts_on in ("heads", "scores") else "mlp_output"
    place = {"LayerDrop": "block", "LearnedBlockDropout": "mlp_hidden"}.get(name, place)
    parameters = inspect.signature(kind).parameters
    rule = {"select": place, "layer": name}
    rule |= {key: value for key, value in {"heads": 2, "std": 0.5, "block": 2}.items() if key in parameters}
    rule |= {"p": 0.3} if issubclass(kind, layers.RateLayer) else {}
    return rule | ({"weight": 0.1} if kind.has_penalty or "penalty" in parameters else {})


@pytest.mark.parametrize("name", layers.__all__)
def test_every_layer_trains_to_the_end_and_being_measured_changes_nothing(
    here, tmp_path, config_file, tiny, name
):
    config = tiny(recipe=[rule_of(name)], steps=3, eval_every=1, batch=2, warmup_steps=0, eval_windows=4)
    result = here("train", config_file(config), "--out", "often")
    assert (result.code, result.err) == (0, "")
    record, rows = read_run(tmp_path / "often"), read_metrics(tmp_path / "often" / "metrics.jsonl")
    assert (record["status"], record["result"]["step"]) == ("finished", 3)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert {"val_loss", "keep", "keep_eval", "penalty"} <= record["result"].keys()
    assert f"val loss {record['result']['val_loss']:.4f}" in result.out
    run(replace(config, training=replace(config.training, eval_every=3)), tmp_path / "once")
    models = [(tmp_path / place / "model" / "model.safetensors").read_bytes() for place in ("often", "once")]
    assert models[0] == models[1]


@pytest.mark.parametrize("seed", [0, 7])
def test_a_seed_given_is_the_seed_taken(here, tmp_path, config_file, tiny, seed):
    assert here("train", config_file(tiny(steps=1, seed=3)), "--out", "out", "--seed", seed).code == 0
    assert read_run(tmp_path / "out")["seed"] == seed


def test_a_cache_that_cannot_be_written_is_one_sentence(here, tmp_path, config_file, tiny, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    result = here("train", config_file(tiny(steps=1)), "--out", "out")
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    assert result.err.startswith(f"error: Prepared data cannot be kept in {tmp_path / 'cache'}/")
    assert not (tmp_path / "out" / "run.json").exists()


@pytest.mark.parametrize(
    ("options", "reason"), [("size=8k", "no space left on device"), ("ro", "read-only file system")]
)
def test_a_cache_that_is_full_or_read_only_is_one_sentence(
    here, tmp_path, config_file, tiny, monkeypatch, small_disk, options, reason
):
    disk = small_disk(options)
    monkeypatch.setenv("XDG_CACHE_HOME", str(disk))
    result = here("train", config_file(tiny(steps=1)), "--out", "out")
    assert (result.code, len(result.err.splitlines())) == (2, 1)
    place = f"{disk / 'transformer-dropout'}: {reason}; "
    assert result.err.startswith(f"error: Prepared data cannot be kept in {place}")
    assert "XDG_CACHE_HOME" in result.err
    assert not (tmp_path / "out").exists()
    assert [path for path in disk.rglob("*") if path.is_file()] == []


def test_a_cache_that_has_the_data_need_not_be_written(here, config_file, tiny, monkeypatch, small_disk):
    disk, path = small_disk("size=1m"), config_file(tiny(steps=1))
    monkeypatch.setenv("XDG_CACHE_HOME", str(disk))
    assert here("train", path, "--out", "first").code == 0
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    assert here("train", path, "--out", "second").code == 0
