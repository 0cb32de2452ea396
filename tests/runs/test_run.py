"""Runs in their folders: what they write, what they refuse, and how they fail."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock

from transformer_dropout.errors import InputError
from transformer_dropout.runs.checkpoint import latest_checkpoint
from transformer_dropout.runs.listener import Listener
from transformer_dropout.runs.loop import Training
from transformer_dropout.runs.processes import Processes
from transformer_dropout.runs.record import read_metrics, read_run
from transformer_dropout.runs.run import RunInFolder, prepare, run
from transformer_dropout.runs.run_config import load_run_config
from transformer_dropout.runs.training_config import EarlyStoppingConfig
from transformer_dropout.tasks.language.data import DataConfig
from transformer_dropout.tasks.language.saved_model import load_model

METRICS = {
    "step",
    "tokens",
    "epochs",
    "train_loss",
    "val_loss",
    "keep",
    "keep_eval",
    "penalty",
    "lr",
    "step_seconds",
    "peak_memory_bytes",
}
MEASURED = ("step_seconds", "peak_memory_bytes")


def rows(folder):
    """Return the metrics without what depends on the machine's mood."""
    lines = read_metrics(folder / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def messages_of(config, folder, **options):
    said = []
    run(config, folder, listener=Listener(message=said.append), **options)
    return said


def test_a_run_writes_its_record_and_a_row_an_evaluation(tmp_path, tiny, learned):
    config = tiny(recipe=learned, accumulation=2)
    record = run(config, tmp_path / "run")
    assert record == read_run(tmp_path / "run")
    assert (record["status"], record["error"], record["fingerprint"]) == (
        "finished",
        None,
        config.fingerprint(),
    )
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 10, 20]
    assert all(line.keys() >= METRICS for line in lines)
    last, result = lines[-1], record["result"]
    assert last["tokens"] == result["tokens"] == 20 * 4 * 2 * 16
    assert 0 < last["keep"] < 1
    assert last["penalty"] > 0
    assert last["step_seconds"] > 0
    assert last["val_loss"] == result["val_loss"] < lines[0]["val_loss"] - 1
    assert load_run_config(tmp_path / "run" / "config.yaml") == config


def test_the_last_evaluation_is_made_twice_and_recorded_as_bit_equal(tmp_path, tiny, learned):
    record = run(tiny(recipe=learned), tmp_path / "run")
    assert record["result"]["evaluation_bit_equal"] is True


def test_the_saved_model_has_the_recorded_loss(tmp_path, tiny, learned):
    config = tiny(recipe=learned)
    record = run(config, tmp_path / "run")
    model, _ = load_model(tmp_path / "run" / "model")
    windows = prepare(config).validation
    with torch.no_grad():
        loss = model(*windows.inputs_and_targets(range(len(windows)))).item()
    assert loss == pytest.approx(record["result"]["val_loss"], abs=1e-6)


def test_the_same_config_gives_the_same_run(tmp_path, tiny, learned):
    config = tiny(recipe=learned)
    for name in ("a", "b"):
        run(config, tmp_path / name)
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    model = "model/model.safetensors"
    assert (tmp_path / "a" / model).read_bytes() == (tmp_path / "b" / model).read_bytes()


def test_two_arms_of_a_seed_start_alike_and_see_the_same_data(tiny, learned):
    arms = [tiny(), tiny(weight_decay=5.0), tiny(recipe=learned), tiny(seed=1)]
    alone = Processes(rank=0, size=1, device=torch.device("cpu"))
    runs = [Training(arm, prepare(arm), alone) for arm in arms]
    plain, decay, masked, other_seed = runs
    state = plain.whole_state()
    for arm in (decay, masked):
        theirs = arm.whole_state()
        assert all(theirs[name].equal(tensor) for name, tensor in state.items())
    assert not other_seed.whole_state()["embedding.token.weight"].equal(state["embedding.token.weight"])
    for training in runs:
        training.advance()
    assert plain.loss == decay.loss
    assert plain.loss != other_seed.loss


def test_a_regularizer_of_strength_zero_changes_nothing_at_any_step(tmp_path, tiny):
    recipe = [{"select": "mlp_output", "layer": "Dropout", "p": 0}]
    run(tiny(), tmp_path / "none")
    run(tiny(recipe=recipe), tmp_path / "zero")
    plain, zero = rows(tmp_path / "none"), rows(tmp_path / "zero")
    assert {rate for row in zero for rate in row.pop("rate_by_site").values()} == {0.0}
    assert [row.pop("rate_by_site") for row in plain] == [{}] * len(plain)
    assert plain == zero


def test_a_finished_run_is_left_as_it_is(tmp_path, tiny):
    record = run(tiny(), tmp_path / "run")
    before = snapshot(tmp_path / "run")
    assert run(tiny(), tmp_path / "run", resume=True) == record
    assert "finished; nothing to do" in messages_of(tiny(), tmp_path / "run", resume=True)[0]
    assert snapshot(tmp_path / "run") == before


def test_the_folder_of_another_run_is_refused_and_untouched(tmp_path, tiny):
    run(tiny(), tmp_path / "run")
    before = snapshot(tmp_path / "run")
    for resume in (False, True):
        with pytest.raises(InputError, match="holds another run"):
            run(tiny(seed=1), tmp_path / "run", resume=resume)
    assert snapshot(tmp_path / "run") == before


def test_this_run_again_without_resume_is_refused_and_untouched(tmp_path, tiny):
    run(tiny(), tmp_path / "run")
    before = snapshot(tmp_path / "run")
    with pytest.raises(InputError, match=r"already holds this run \(finished\); add --resume"):
        run(tiny(), tmp_path / "run")
    assert snapshot(tmp_path / "run") == before


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_something_else_is_refused_and_untouched(tmp_path, tiny, resume):
    (tmp_path / "thesis.tex").write_text("years of work")
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=r"is no run folder \(it holds thesis\.tex\)"):
        run(tiny(), tmp_path, resume=resume)
    assert snapshot(tmp_path) == before


def test_an_empty_folder_is_taken(tmp_path, tiny):
    assert run(tiny(steps=1), tmp_path)["status"] == "finished"


def test_a_config_that_does_not_fit_leaves_no_folder(tmp_path, tiny, learned):
    with pytest.raises(InputError, match="cannot be split among 5 heads"):
        run(tiny(recipe=[learned[0] | {"heads": 5}]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("eval_every", "bad_step"), [(10, 2), (1, 1)])
def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_checkpoint(
    tmp_path, tiny, eval_every, bad_step
):
    config = tiny(lr=1e30, eval_every=eval_every)
    with pytest.raises(InputError, match=f"not finite at step {bad_step}; the checkpoint of step 0 is kept"):
        run(config, tmp_path / "run")
    record = read_run(tmp_path / "run")
    assert (record["status"], record["result"]) == ("diverged", None)
    assert f"step {bad_step}" in record["error"]
    checkpoint, refused = latest_checkpoint(tmp_path / "run" / "checkpoints", config.fingerprint())
    assert (checkpoint.step, refused) == (0, [])
    assert all(tensor.isfinite().all() for tensor in checkpoint.tensors["model"].values())
    assert all(math.isfinite(row["val_loss"]) for row in rows(tmp_path / "run"))


def test_early_stopping_restores_the_best_weights_and_says_so(tmp_path, tiny):
    config = tiny(steps=200, eval_every=4, lr=0.2, min_lr=0.2, early_stopping=EarlyStoppingConfig(patience=3))
    result = run(config, tmp_path / "run")["result"]
    losses = {row["step"]: row["val_loss"] for row in rows(tmp_path / "run")}
    best = min(losses, key=losses.get)
    assert result["restored_step"] == best < result["step"] == best + 12 < 200
    assert result["val_loss"] == losses[best]


def test_the_best_checkpoint_is_written_before_the_one_that_counts_on_it(tmp_path, tiny):
    run(tiny(early_stopping=EarlyStoppingConfig()), tmp_path / "run")
    best, newest = (
        tmp_path / "run" / "checkpoints" / name / "state.json" for name in ("best", "step-00000020")
    )
    assert json.loads(best.read_text())["step"] == 20
    assert best.stat().st_mtime_ns <= newest.stat().st_mtime_ns


def test_without_early_stopping_nothing_is_restored(tmp_path, tiny):
    assert run(tiny(), tmp_path / "run")["result"]["restored_step"] is None
    assert not (tmp_path / "run" / "checkpoints" / "best").exists()


def test_an_early_stopped_run_whose_best_checkpoint_is_damaged_says_what_to_do(tmp_path, tiny):
    config = tiny(early_stopping=EarlyStoppingConfig(patience=1))
    run(config, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "best" / "model.safetensors").write_bytes(b"")
    record = read_run(tmp_path / "run") | {"status": "running"}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"cannot be restored: model\.safetensors is truncated"):
        run(config, tmp_path / "run", resume=True)


def test_resuming_from_the_very_first_checkpoint_repeats_no_row(tmp_path, tiny):
    config = tiny(lr=1e30, early_stopping=EarlyStoppingConfig(patience=1))
    for _ in range(3):
        with pytest.raises(InputError, match="not finite at step 2"):
            run(config, tmp_path / "run", resume=True)
        assert [row["step"] for row in rows(tmp_path / "run")] == [0]


def test_a_damaged_checkpoint_is_named_and_the_run_ends_as_if_nothing_had_happened(tmp_path, tiny, learned):
    config = tiny(recipe=learned)
    run(config, tmp_path / "whole")
    run(config, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step-00000020" / "optimizer.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    record = read_run(tmp_path / "run") | {"status": "running", "result": None}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    said = messages_of(config, tmp_path / "run", resume=True)
    assert said[0].startswith("Refused checkpoint step-00000020: optimizer.safetensors is truncated")
    assert said[1] == "Continuing from step 10."
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_checkpoints_hold_nothing_that_runs_when_read(tmp_path, tiny, learned):
    run(tiny(recipe=learned), tmp_path / "run")
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".jsonl", ".yaml", ".safetensors", ".lock", ""}
    assert not any(path.read_bytes().startswith((b"\x80", b"PK")) for path in files)


def test_event_files_on_request(tmp_path, tiny):
    run(tiny(tensorboard=True), tmp_path / "run")
    events = list((tmp_path / "run" / "tensorboard").glob("events.out.*"))
    assert len(events) == 1
    assert b"val_loss" in events[0].read_bytes()
    run(tiny(), tmp_path / "without")
    assert not (tmp_path / "without" / "tensorboard").exists()


def test_collapsed_masks_are_told_and_recorded(tmp_path, tiny, learned):
    config = tiny(recipe=[learned[0] | {"shift": math.pi}])
    said = messages_of(config, tmp_path / "run")
    alarms = read_run(tmp_path / "run")["alarms"]
    assert any("blocks.0.mlp" in alarm and "zeros" in alarm for alarm in alarms)
    assert any("blocks.0.mlp" in sentence for sentence in said)


def test_a_full_disk_is_one_sentence_and_the_run_continues_when_there_is_room(
    tmp_path, tiny, learned, small_disk
):
    config = tiny(recipe=learned, eval_every=2)
    disk = small_disk("size=200k")
    with pytest.raises(InputError, match=r"^Cannot write to [^\n]+: no space left on device; [^\n]+$"):
        run(config, disk / "run")
    checkpoint, refused = latest_checkpoint(disk / "run" / "checkpoints", config.fingerprint())
    assert refused == []
    assert checkpoint is not None
    assert read_run(disk / "run")["status"] == "running"
    subprocess.run(["mount", "-o", "remount,size=10m", str(disk)], check=True)
    assert run(config, disk / "run", resume=True)["status"] == "finished"
    run(config, tmp_path / "whole")
    assert rows(disk / "run") == rows(tmp_path / "whole")


def test_a_disk_full_from_the_start_is_one_sentence(tiny, small_disk):
    with pytest.raises(InputError, match="no space left on device"):
        run(tiny(), small_disk("size=8k") / "run")


def test_a_read_only_place_is_one_sentence(tiny, small_disk):
    with pytest.raises(InputError, match=r"^Cannot write to [^\n]+: read-only file system; [^\n]+$"):
        run(tiny(), small_disk("ro") / "run")


def test_a_second_process_in_the_same_folder_is_refused(tmp_path, tiny, environment):
    folder = tmp_path / "run"
    folder.mkdir()
    config = tiny(steps=10**6, eval_every=10**6)
    (folder / "config.yaml").write_text(config.to_yaml())
    command = [sys.executable, "-m", "transformer_dropout.runs", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        try:
            process.stdout.readline()
            with pytest.raises(InputError, match="Another process is running in"):
                run(config, folder, resume=True)
            assert process.poll() is None
        finally:
            process.kill()
    # The system freed the folder when the process died, so it can be locked again.
    lock = FileLock(folder / ".run.lock")
    with lock.acquire(blocking=False):
        assert lock.is_locked


def test_the_last_step_is_evaluated_where_it_is_no_multiple(tmp_path, tiny):
    record = run(tiny(steps=5, eval_every=2), tmp_path / "run")
    assert [row["step"] for row in rows(tmp_path / "run")] == [0, 2, 4, 5]
    assert record["result"]["val_loss"] == rows(tmp_path / "run")[-1]["val_loss"]


def test_an_alarm_is_told_once(tmp_path, tiny, learned):
    config = tiny(recipe=[learned[0] | {"shift": math.pi}], steps=4, eval_every=1)
    told = [sentence for sentence in messages_of(config, tmp_path / "run") if "blocks.0.mlp" in sentence]
    assert len(told) == len({sentence.partition(": ")[2] for sentence in told}) > 0


def unfinished(folder):
    """Let a finished run look as if its end had not been recorded."""
    (folder / "run.json").write_text(json.dumps(read_run(folder) | {"status": "running"}))


def test_a_run_continued_under_other_code_says_so(tmp_path, tiny, monkeypatch):
    config = tiny(steps=4, eval_every=2)
    run(config, tmp_path / "run")
    assert read_run(tmp_path / "run")["notes"] == []
    unfinished(tmp_path / "run")
    monkeypatch.setattr("transformer_dropout.runs.record.native_version", lambda: "0.1")
    said = messages_of(config, tmp_path / "run", resume=True)
    (note,) = read_run(tmp_path / "run")["notes"]
    assert note in said
    assert note.startswith("Continued under other code, so last digits may differ: native ")
    assert note.endswith(" before, 0.1 from here on.")


def test_a_run_is_not_continued_on_other_data(tmp_path, tiny):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line {n} of one text.\n" for n in range(200)))
    config = replace(tiny(steps=4, eval_every=2), data=DataConfig(source=str(text)))
    run(config, tmp_path / "run")
    unfinished(tmp_path / "run")
    before = snapshot(tmp_path / "run" / "checkpoints")
    text.write_text(text.read_text().replace("one", "two"))
    with pytest.raises(InputError, match=r"began with other data \(train differs\); put it back"):
        run(config, tmp_path / "run", resume=True)
    assert snapshot(tmp_path / "run" / "checkpoints") == before


def test_whoever_is_told_the_numbers_hears_from_which_step_on(monkeypatch):
    monkeypatch.setattr("transformer_dropout.runs.run.reporting", lambda *given: given)
    facts = {"config": "config", "folder": "folder", "training": SimpleNamespace(step=4)}
    first, other = (
        SimpleNamespace(processes=SimpleNamespace(first=first), **facts) for first in (True, False)
    )
    assert RunInFolder.reporting(first) == ("config", "folder", 4)
    with RunInFolder.reporting(other) as report:
        assert report is None
