"""What TensorBoard, W&B and trackio are told is what the records hold, offline."""

import json
import sqlite3
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from transformer_dropout.errors import InputError
from transformer_dropout.runs import reporting
from transformer_dropout.runs.reporting import flat_numbers
from transformer_dropout.runs.run import run
from transformer_dropout.runs.run_config import load_run_config


def recorded(folder):
    """Return the numbers of the records by step."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {row["step"]: flat_numbers(row) for row in map(json.loads, lines)}


def told_to_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    found = {}
    for name in events.Tags()["scalars"]:
        for event in events.Scalars(name):
            found.setdefault(event.step, {})[name] = event.value
    return found


def told_to_wandb(folder):
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    found = {}
    for content in log_of_leveldb(file.read_bytes()):
        record = Record()
        record.ParseFromString(content)
        row = {
            (item.key or "/".join(item.nested_key)): json.loads(item.value_json)
            for item in record.history.item
        }
        if row:
            row = {name: value for name, value in row.items() if not name.startswith("_")}
            found[row.pop("step")] = row
    return found


def log_of_leveldb(data, block=32768):
    """Yield the records of a file as W&B writes it: pieces behind a checksum, a length and a type."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts, at = parts + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # the whole of a record, or the last of its pieces
            yield parts
            parts = b""


def told_to_trackio(folder):
    (file,) = folder.parent.glob("trackio/*.db")
    with sqlite3.connect(file) as database:
        rows = database.execute("select step, metrics from metrics").fetchall()
    database.close()
    return {step: json.loads(metrics) for step, metrics in rows}


TOLD = {"tensorboard": told_to_tensorboard, "wandb": told_to_wandb, "trackio": told_to_trackio}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised inside the libraries
@pytest.mark.parametrize("name", TOLD)
def test_every_number_of_the_records_is_told_by_layer(name, tmp_path, tiny, learned, environment):
    config, folder = tiny(recipe=learned, report_to=[name]), tmp_path / "run"
    (tmp_path / "my.yaml").write_text(config.to_yaml())
    home = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio"), "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "transformer_dropout", "train", "my.yaml", "--out", "run"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment | home, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    told, wanted = TOLD[name](folder), recorded(folder)
    assert told.keys() == wanted.keys() == {0, 10, 20}
    for step, numbers in wanted.items():
        assert told[step] == pytest.approx(numbers, rel=1e-6)
    assert {"val_loss", "keep/blocks.0.mlp/mlp_output", "keep_eval/blocks.0.mlp/mlp_output"} <= told[
        20
    ].keys()
    assert told[20]["rate/blocks.0.attention/attention_output"] == pytest.approx(0.1)


def test_every_way_can_be_named_and_every_name_has_a_way(tiny):
    assert reporting.WAYS.keys() == TOLD.keys()
    for name in TOLD:
        assert tiny(report_to=[name]).training.report_to == [name]


def test_older_configs_keep_their_fingerprint(tmp_path, tiny):
    assert "report_to" not in tiny().to_yaml()
    (tmp_path / "my.yaml").write_text(tiny(report_to=["wandb"]).to_yaml())
    assert load_run_config(tmp_path / "my.yaml").training.report_to == ["wandb"]


@pytest.mark.parametrize("name", TOLD)
def test_what_is_not_installed_is_one_sentence(name, tmp_path, tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else name, None)
    with pytest.raises(InputError, match=rf"names {name}, .* pip install 'transformer-dropout\[{name}\]'"):
        run(tiny(report_to=[name]), tmp_path / "run")


def test_numbers_of_layers_go_by_their_place_and_what_is_none_goes_nowhere():
    row = {"step": 3, "loss": 1, "keep_by_site": {"a": 0.5, "b": None}, "more": {"x": {"y": 2}}}
    row |= {"flag": True, "text": "x", "none": None, "list": [1]}
    found = flat_numbers(row)
    assert found == {"loss": 1.0, "keep/a": 0.5, "more/x/y": 2.0}
    assert all(type(number) is float for number in found.values())


def test_a_folder_has_a_short_name_of_its_own(tmp_path, monkeypatch):
    names = {reporting.own_name(tmp_path / name) for name in "ab"}
    assert len(names) == 2 and {len(name) for name in names} == {10}
    monkeypatch.chdir(tmp_path)
    assert reporting.own_name(Path("a")) in names


def test_everyone_who_is_named_is_told_once(tiny, tmp_path, monkeypatch):
    told = []

    def way(name):
        @contextmanager
        def opened(config, folder, step):
            told.append((name, folder, step))
            yield lambda numbers, at: told.append((name, numbers, at))
            told.append(name)

        return opened

    monkeypatch.setattr(reporting, "WAYS", {name: way(name) for name in TOLD})
    config = tiny(report_to=["wandb", "tensorboard"], tensorboard=True)
    with reporting.reporting(config, tmp_path, 7) as report:
        report({"loss": 1, "step": 8}, 8)
    assert told == [
        ("wandb", tmp_path, 7),
        ("tensorboard", tmp_path, 7),
        ("wandb", {"loss": 1.0}, 8),
        ("tensorboard", {"loss": 1.0}, 8),
        "tensorboard",
        "wandb",
    ]
    told.clear()
    with reporting.reporting(tiny(tensorboard=True), tmp_path, 0) as report:
        assert told == [("tensorboard", tmp_path, 0)]
    with reporting.reporting(tiny(), tmp_path, 0) as report:
        report({"loss": 1}, 1)
