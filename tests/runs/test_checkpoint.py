"""Checkpoints: what they hold, which are kept, and how a damaged one is refused."""

import json
import shutil

import pytest
import torch

from transformer_dropout.errors import InputError
from transformer_dropout.runs.checkpoint import (
    Checkpoint,
    DamagedCheckpoint,
    checkpoint_folders,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from transformer_dropout.runs.run import run


def made(step, run="run"):
    tensors = {
        "model": {"w": torch.arange(12.0).view(3, 4).t() + step, "n": torch.tensor(step)},
        "random": {"0/cpu": torch.get_rng_state()},
        "optimizer": {},
    }
    return Checkpoint(step=step, run=run, tensors=tensors, state={"best": float("inf"), "list": [1, None]})


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip_one_bit(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    saved = made(7)
    loaded = load_checkpoint(save_checkpoint(tmp_path, saved), "run")
    assert (loaded.step, loaded.run, loaded.state) == (7, "run", saved.state)
    assert loaded.tensors.keys() == saved.tensors.keys()
    for group, tensors in saved.tensors.items():
        assert loaded.tensors[group].keys() == tensors.keys()
        assert all(loaded.tensors[group][name].equal(tensor) for name, tensor in tensors.items())


def test_only_the_newest_are_kept(tmp_path):
    for step in (0, 5, 10, 100):
        save_checkpoint(tmp_path, made(step))
    assert [place.name for place in checkpoint_folders(tmp_path)] == ["step-00000100", "step-00000010"]


def test_a_checkpoint_with_a_name_of_its_own_is_kept(tmp_path):
    save_checkpoint(tmp_path, made(1), name="best")
    for step in range(5):
        save_checkpoint(tmp_path, made(step))
    assert load_checkpoint(tmp_path / "best", "run").step == 1
    save_checkpoint(tmp_path, made(4), name="best")
    assert load_checkpoint(tmp_path / "best", "run").step == 4
    assert latest_checkpoint(tmp_path, "run")[0].step == 4


def test_the_same_step_may_be_saved_again(tmp_path):
    save_checkpoint(tmp_path, made(5))
    save_checkpoint(tmp_path, made(5))
    assert latest_checkpoint(tmp_path, "run")[0].step == 5


def test_what_a_kill_left_half_written_is_never_read_and_goes_away(tmp_path):
    place = save_checkpoint(tmp_path, made(5))
    half = tmp_path / ".writing-step-00000010"
    shutil.copytree(place, half)
    (half / "state.json").unlink()
    assert latest_checkpoint(tmp_path, "run")[0].step == 5
    save_checkpoint(tmp_path, made(12))
    assert not half.exists()


@pytest.mark.parametrize(
    ("damage", "name", "reason"),
    [
        (cut, "model.safetensors", "model.safetensors is truncated or altered"),
        (flip_one_bit, "random.safetensors", "random.safetensors is truncated or altered"),
        (lambda path: path.write_bytes(b""), "optimizer.safetensors", "optimizer.safetensors is truncated"),
        (lambda path: path.unlink(), "model.safetensors", "model.safetensors cannot be read"),
        (lambda path: path.unlink(), "state.json", "state.json cannot be read"),
        (cut, "state.json", "state.json is truncated or altered"),
        (lambda path: path.write_text("[]"), "state.json", "state.json is truncated or altered"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "state.json", "state.json is truncated or altered"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_is_used(tmp_path, damage, name, reason):
    save_checkpoint(tmp_path, made(5))
    damage(save_checkpoint(tmp_path, made(10)) / name)
    checkpoint, refused = latest_checkpoint(tmp_path, "run")
    assert checkpoint.step == 5
    assert len(refused) == 1
    assert refused[0].startswith("Refused checkpoint step-00000010: ")
    assert reason in refused[0]


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    place = save_checkpoint(tmp_path, made(5, run="other"))
    with pytest.raises(DamagedCheckpoint, match="belongs to another run config"):
        load_checkpoint(place, "run")


def test_when_all_are_damaged_none_is_left(tmp_path):
    for step in (5, 10):
        cut(save_checkpoint(tmp_path, made(step)) / "model.safetensors")
    checkpoint, refused = latest_checkpoint(tmp_path, "run")
    assert checkpoint is None
    assert len(refused) == 2


def test_a_run_that_has_none_has_none(tmp_path):
    assert latest_checkpoint(tmp_path / "missing", "run") == (None, [])


def test_nothing_in_a_checkpoint_is_code(tmp_path):
    place = save_checkpoint(tmp_path, made(5))
    assert {path.suffix for path in place.iterdir()} == {".safetensors", ".json"}
    for path in place.iterdir():
        if path.suffix == ".json":
            json.loads(path.read_text())
        else:
            # A safetensors file begins with the length of a JSON header; a pickle or zip does not.
            content = path.read_bytes()
            length = int.from_bytes(content[:8], "little")
            assert isinstance(json.loads(content[8 : 8 + length]), dict)


def test_every_flipped_bit_of_the_state_is_noticed_or_changes_nothing(tmp_path):
    saved = made(7)
    place = save_checkpoint(tmp_path, saved)
    path = place / "state.json"
    content = path.read_bytes()
    went_on = 0
    for bit in range(0, 8 * len(content), 3):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            loaded = load_checkpoint(place, "run")
        except DamagedCheckpoint:
            continue
        went_on += 1
        assert (loaded.step, loaded.state) == (saved.step, saved.state)
    assert went_on < len(content) / 10


def test_as_many_checkpoints_are_kept_as_asked_for(tiny, tmp_path):
    run(tiny(keep_checkpoints=3, steps=20, eval_every=5), tmp_path / "out")
    kept = sorted(path.name for path in (tmp_path / "out" / "checkpoints").glob("step-*"))
    assert kept == ["step-00000010", "step-00000015", "step-00000020"]
    with pytest.raises(InputError, match="keep_checkpoints is 1, but it must be at least 2"):
        tiny(keep_checkpoints=1)
