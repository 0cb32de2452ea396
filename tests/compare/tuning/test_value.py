"""The number that a search compares, as the records of its runs say it."""

import json

import pytest

from transformer_dropout.compare.tuning.value import deciding, first_metric, metric_name, rows_of

ACCURACY = {"name": "accuracy", "better": "higher"}
LOSS = {"name": "loss", "better": "lower"}


def record(folder, *metrics):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"format": 1, "task": {"metrics": list(metrics)}}))
    return folder


def test_the_first_metric_decides_and_a_loss_where_none_is_said(tmp_path):
    assert first_metric(record(tmp_path / "a", ACCURACY, LOSS)) == ACCURACY
    assert first_metric(record(tmp_path / "b")) == LOSS
    assert first_metric(tmp_path / "c") == LOSS
    (tmp_path / "b" / "run.json").write_text('{"format": 1}')
    assert first_metric(tmp_path / "b") == LOSS


@pytest.mark.parametrize(
    ("values", "loss", "accuracy"),
    [
        ({"val_loss": 2.0, "val_accuracy": 0.5}, 2.0, -0.5),
        ({"val_loss": 3, "val_accuracy": 1}, 3.0, -1.0),
        ({"val_loss": None, "val_accuracy": True}, None, None),
        ({"loss": 2.0, "accuracy": 0.5}, None, None),
        ({"val_loss": "2"}, None, None),
    ],
)
def test_less_is_better_whatever_is_measured(tmp_path, values, loss, accuracy):
    assert deciding(tmp_path / "a", values) == loss
    assert deciding(record(tmp_path / "b", ACCURACY), values) == accuracy
    assert loss is None or type(deciding(tmp_path / "a", values)) is float


def test_evaluations_are_read_where_there_are_any(tmp_path):
    assert rows_of(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    assert rows_of(tmp_path) == [{"step": 1}, {"step": 2}]


def test_a_metric_is_named_by_any_run_of_the_search(tmp_path):
    assert metric_name(tmp_path) == "val_loss"
    record(tmp_path / "trials" / "b" / "0000" / "fold-0", LOSS)
    assert metric_name(tmp_path) == "val_loss"
    record(tmp_path / "trials" / "a" / "0003" / "fold-0", ACCURACY)
    record(tmp_path / "trials" / "a" / "0003" / "fold-1", LOSS)
    assert metric_name(tmp_path) == "val_accuracy, negated"
