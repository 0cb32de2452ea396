"""The two record files of a run."""

import json

import pytest
import torch

from transformer_dropout.runs.cost import count_cost
from transformer_dropout.runs.record import (
    Records,
    computed_by,
    float32_linears,
    machine,
    new_record,
    read_metrics,
    read_run,
    versions,
)
from transformer_dropout.runs.run import prepare


@pytest.fixture
def records(tmp_path):
    return Records(tmp_path, writes=True)


def test_a_new_record_says_what_the_run_is(tiny, learned):
    config = tiny(recipe=learned, seed=3)
    splits = prepare(config)
    record = new_record(config, splits.manifest, count_cost(config, splits))
    assert json.loads(json.dumps(record)) == record
    assert (record["status"], record["seed"]) == ("running", 3)
    assert record["fingerprint"] == config.fingerprint()
    assert record["config"] == config.to_data()
    assert record["versions"]["torch"] == torch.__version__
    assert record["computed_by"]["float32_linears"] == ("PyTorch" if torch.cuda.is_available() else "oneDNN")
    assert record["parameters"]["regularizer"] == 3 * 16**2 + 16
    assert record["data"]["train"]["tokens"] == len(splits.train.tokens)
    assert record["data"]["train_sha256"] != record["data"]["validation_sha256"]
    assert record["notes"] == []


def test_parameters_without_a_gradient_are_told(tiny):
    rule = {"select": "mlp_output", "layer": "PrecomputedLearnedDropout", "heads": 2, "weight": 0.1}
    config = tiny(recipe=[rule])
    splits = prepare(config)
    record = new_record(config, splits.manifest, count_cost(config, splits))
    assert record["notes"] == [record["notes"][0]]
    assert "1,024 parameters never receive a gradient" in record["notes"][0]


def test_a_compiled_run_has_the_linear_layers_of_pytorch(tiny):
    assert float32_linears(tiny(compile=True)) == "PyTorch"


def test_the_machine_is_described():
    described = machine()
    assert described["device"] in ("cpu", torch.cuda.get_device_name() if torch.cuda.is_available() else "")
    assert described["cores"] >= 1
    assert described["cpu"]


def test_changes_are_written_at_once(records, tmp_path):
    records.update(status="running", alarms=[])
    records.update(status="finished")
    assert read_run(tmp_path) == {"status": "finished", "alarms": []}


def test_a_process_that_does_not_write_writes_nothing(tmp_path):
    records = Records(tmp_path, writes=False)
    records.update(status="running")
    records.append({"step": 1})
    records.begin_with([])
    assert records.content == {"status": "running"}
    assert list(tmp_path.iterdir()) == []


def test_the_rows_of_a_checkpoint_take_the_place_of_what_is_there(records, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n\x00damaged\n{"step": 20}\n{"step": 10, "val_lo')
    assert read_metrics(path) == [{"step": 0}, {"step": 20}]
    records.begin_with([{"step": 0, "val_loss": 10 / 7}, {"step": 10}])
    records.append({"step": 20})
    assert read_metrics(path) == [{"step": 0, "val_loss": 10 / 7}, {"step": 10}, {"step": 20}]
    assert records.rows == read_metrics(path)
    records.begin_with([])
    assert read_metrics(path) == []


@pytest.mark.parametrize("content", [None, "", '{"status": "runn', "\x00\x00", "[]", "3"])
def test_a_record_that_cannot_be_read_is_none(tmp_path, content):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    assert read_run(tmp_path) is None


def test_what_decides_the_digits_is_named(tiny):
    assert set(machine()) == {"platform", "cpu", "cores", "threads", "device"}
    assert set(versions()) == {"python", "torch", "transformer_dropout"}
    assert set(computed_by(tiny())) == {
        *("processor", "instructions", "threads", "device", "float32_linears"),
        *("native", "torch", "numpy", "transformer_dropout"),
    }


def test_rows_around_a_damaged_one_are_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n{"step": \xff}\n{"step": 2}\n')
    assert [row["step"] for row in read_metrics(path)] == [0, 2]
