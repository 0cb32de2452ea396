"""The steps of tuned methods: whether what is timed is what was recorded."""

import json

import pytest

from benchmarks import tuned_steps
from benchmarks.row import Budget


def test_each_row_times_a_run_of_a_record():
    for row in tuned_steps.ROWS:
        setting, arm = row.measure.keywords["setting"], row.measure.keywords["arm"]  # pyrefly: ignore
        assert (tuned_steps.RECORDS / setting / "runs" / arm / "seed-0").is_dir(), row.name


@pytest.mark.slow
def test_what_is_timed_is_a_step_of_the_recorded_run():
    measured = tuned_steps.ROWS[3].measure(Budget(rounds=1, quick=True))
    assert measured.value > 0 and set(measured.seconds) == {"rival", "ours"}
    assert "relu-with-l1 begins within" in measured.gate
    assert measured.about["recipe"][0]["layer"] == "SparseReLU"


def test_a_run_that_begins_elsewhere_is_not_timed(tmp_path, monkeypatch):
    source = tuned_steps.RECORDS / "digits_vit" / "runs" / "none" / "seed-0"
    copy = tmp_path / "digits_vit" / "runs" / "none" / "seed-0"
    copy.mkdir(parents=True)
    (copy / "config.yaml").write_bytes((source / "config.yaml").read_bytes())
    first = json.loads((source / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    (copy / "metrics.jsonl").write_text(json.dumps({**first, "val_loss": 1.01 * first["val_loss"]}))
    monkeypatch.setattr(tuned_steps, "RECORDS", tmp_path)
    with pytest.raises(AssertionError, match="digits_vit, none begins at"):
        tuned_steps.as_recorded("digits_vit", "none")
