"""Reading comparison folders: what is kept, what is left out, and what is refused."""

import json

import pytest

from transformer_dropout.compare.records import load_comparison, load_runs, number
from transformer_dropout.errors import InputError


def test_reads_arms_in_order_and_runs_by_arm_and_seed(folder):
    comparison = load_comparison(folder.write(seeds=(7, 3)))
    assert comparison.arms == ("none", "dropout p=0.1", "learned", "twin")
    assert [run.seed for run in comparison.of("learned")] == [3, 7]
    assert comparison.losses("none").keys() == {3, 7}
    run = comparison.usable("dropout p=0.1")[0]
    assert (run.weight_decay, run.recipe[0]["layer"], len(run.metrics)) == (0.1, "Dropout", 21)
    assert run.val_loss == pytest.approx(run.metrics[-1]["val_loss"])


@pytest.mark.parametrize("status", ["running", "failed", "interrupted", "diverged"])
def test_unfinished_runs_are_kept_but_not_used(folder, status):
    path = folder.write(seeds=(1, 2))
    folder.change("learned", 2, status=status)
    comparison = load_comparison(path)
    assert [run.status for run in comparison.of("learned")] == ["finished", status]
    assert comparison.losses("learned").keys() == {1}


def test_a_finished_run_without_a_finite_loss_is_not_used(folder):
    path = folder.write(seeds=(1, 2))
    folder.change("learned", 2, result={"val_loss": float("nan")})
    assert load_comparison(path).losses("learned").keys() == {1}


def test_a_partial_last_line_of_metrics_is_dropped(folder):
    path = folder.write(seeds=(1,))
    metrics = folder.cell("none", 1) / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 2100, "val_lo')
    assert load_comparison(path).of("none")[0].metrics[-1]["step"] == 2000


def test_a_broken_line_in_the_middle_of_metrics_is_refused(folder):
    path = folder.write(seeds=(1,))
    metrics = folder.cell("none", 1) / "metrics.jsonl"
    metrics.write_text('{"step": 0}\n{"ste\n{"step": 200}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl:2 is not a row"):
        load_comparison(path)


def test_the_later_row_of_a_repeated_step_wins(folder):
    path = folder.write(seeds=(1,))
    metrics = folder.cell("none", 1) / "metrics.jsonl"
    metrics.write_text('{"step": 0, "lr": 1}\n{"step": 9, "lr": 2}\n{"step": 0, "lr": 3}\n')
    assert [row["lr"] for row in load_comparison(path).of("none")[0].metrics] == [3, 2]


def test_a_run_without_metrics_or_run_json_is_tolerated(folder):
    path = folder.write(seeds=(1, 2))
    (folder.cell("none", 1) / "metrics.jsonl").unlink()
    (folder.cell("none", 2) / "run.json").unlink()
    comparison = load_comparison(path)
    assert [run.metrics for run in comparison.of("none")] == [[]]


def test_runs_of_other_arms_and_seeds_do_not_enter(folder):
    path = folder.write(seeds=(1, 2))
    record = json.loads((path / "comparison.json").read_text())
    (path / "comparison.json").write_text(json.dumps(record | {"arms": ["none", "learned"], "seeds": [2]}))
    assert {(run.name, run.seed) for run in load_comparison(path).runs} == {("none", 2), ("learned", 2)}
    assert len(load_runs(path)) == 8


@pytest.mark.parametrize("key", ["train_sha256", "validation_sha256", "vocabulary_size"])
def test_different_data_is_refused_by_naming_both_runs(folder, key):
    path = folder.write(seeds=(1, 2))
    data = json.loads((folder.cell("twin", 2) / "run.json").read_text())["data"]
    folder.change("twin", 2, data=data | {key: "other"})
    with pytest.raises(InputError, match=rf"twin/seed-1 and .*twin/seed-2 saw different data \({key}\)"):
        load_comparison(path)


def test_missing_data_keys_are_tolerated(folder):
    path = folder.write(seeds=(1, 2))
    folder.change("twin", 2, data={})
    assert len(load_comparison(path).runs) == 8


def test_one_arm_with_two_settings_is_refused(folder):
    path = folder.write(seeds=(1, 2))
    config = json.loads((folder.cell("twin", 2) / "run.json").read_text())["config"]
    folder.change("twin", 2, config=config | {"training": config["training"] | {"steps": 9}})
    with pytest.raises(InputError, match=r"one arm with different settings \(training\)"):
        load_comparison(path)


def test_a_folder_that_is_no_comparison_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match=r"comparison.json cannot be read"):
        load_comparison(tmp_path)
    with pytest.raises(InputError, match="has no runs"):
        load_runs(tmp_path)
    path = folder.write(seeds=(1,))
    (path / "comparison.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        load_comparison(path)
    (path / "comparison.json").write_text("[]")
    with pytest.raises(InputError, match="not a JSON object"):
        load_comparison(path)
    (path / "comparison.json").write_text("{}")
    with pytest.raises(InputError, match="names no arms"):
        load_comparison(path)


def test_a_newer_format_is_refused(folder):
    path = folder.write(seeds=(1,))
    folder.change("none", 1, format=2)
    with pytest.raises(InputError, match="format 2, newer than 1"):
        load_comparison(path)


def test_a_record_without_a_name_is_refused(folder):
    path = folder.write(seeds=(1,))
    folder.change("none", 1, seed=None)
    with pytest.raises(InputError, match="lacks a name, seed or status"):
        load_comparison(path)


def test_two_folders_of_one_cell_are_refused(folder):
    path = folder.write(seeds=(1, 2))
    folder.change("none", 2, seed=1)
    with pytest.raises(InputError, match="same arm and seed"):
        load_comparison(path)


def test_an_unknown_reference_is_refused_with_the_nearest_name(folder):
    with pytest.raises(InputError, match="Did you mean 'learned'"):
        load_comparison(folder.write(seeds=(1,), reference="learnd"))


def test_number_takes_finite_numbers_only():
    row = {"a": 1, "b": float("inf"), "c": None, "d": True, "e": "2"}
    assert [number(row, key) for key in "abcdef"] == [1.0, None, None, None, None, None]
