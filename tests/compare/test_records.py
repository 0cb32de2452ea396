"""Reading comparison folders: what is kept, what is left out, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from transformer_dropout.compare.records import load_comparison, load_run, load_runs, number
from transformer_dropout.errors import InputError


def test_reads_arms_in_order_and_runs_by_arm_and_seed(folder):
    comparison = load_comparison(folder.write(seeds=(7, 3)))
    assert comparison.arms == ("none", "dropout p=0.1", "learned", "twin")
    assert [run.seed for run in comparison.of("learned")] == [3, 7]
    assert comparison.values("none").keys() == {3, 7}
    run = comparison.usable("dropout p=0.1")[0]
    assert (run.weight_decay, run.recipe[0]["layer"], len(run.metrics)) == (0.1, "Dropout", 21)
    assert run.value == pytest.approx(run.metrics[-1]["val_loss"])


@pytest.mark.parametrize("status", ["running", "failed", "interrupted", "diverged"])
def test_unfinished_runs_are_kept_but_not_used(folder, status):
    path = folder.write(seeds=(1, 2))
    folder.change("learned", 2, status=status)
    comparison = load_comparison(path)
    assert [run.status for run in comparison.of("learned")] == ["finished", status]
    assert comparison.values("learned").keys() == {1}


def test_a_finished_run_without_a_finite_loss_is_not_used(folder):
    path = folder.write(seeds=(1, 2))
    folder.change("learned", 2, result={"val_loss": float("nan")})
    assert load_comparison(path).values("learned").keys() == {1}


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


@pytest.mark.parametrize("key", ["train_sha256", "validation_sha256", "test_sha256", "vocabulary_size"])
def test_different_data_is_refused_by_naming_both_runs(folder, key):
    path = folder.write(seeds=(1, 2))
    data = json.loads((folder.cell("twin", 2) / "run.json").read_text())["data"]
    for name in ("none", "dropout p=0.1", "learned", "twin"):
        for seed in (1, 2):
            folder.change(name, seed, data=data | {key: "one"})
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
    with pytest.raises(InputError, match=r"is damaged \(arms: field required\)"):
        load_comparison(path)


def test_a_newer_format_is_refused(folder):
    path = folder.write(seeds=(1,))
    folder.change("none", 1, format=2)
    with pytest.raises(InputError, match="format 2, newer than 1"):
        load_comparison(path)


def test_a_record_without_a_name_is_refused(folder):
    path = folder.write(seeds=(1,))
    folder.change("none", 1, seed=None)
    with pytest.raises(InputError, match=r"is damaged \(seed: input should be a valid integer\): delete "):
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


EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def test_an_integer_of_more_digits_than_a_float_is_no_number():
    assert number({"a": 10**400}, "a") is None


@pytest.mark.parametrize(
    ("decay", "highest"),
    [(0.1, 0.1), ("0.1,3", 3.0), ("0.1,2@0.33,0", 2.0), ({"cosine": {"start": 0.0, "end": 0.7}}, 0.7)],
)
def test_the_highest_weight_decay_is_found_wherever_it_lies(folder, arm_of, decay, highest):
    run = load_comparison(folder.write({"a": arm_of(0.0, weight_decay=decay)}, seeds=(1,))).runs[0]
    assert run.weight_decay == pytest.approx(highest)


def test_the_best_evaluation_may_lie_before_the_end(folder):
    path = folder.write(seeds=(1,))
    metrics = folder.cell("none", 1) / "metrics.jsonl"
    metrics.write_text(
        '{"step": 0, "val_loss": 5.0}\n{"step": 9, "val_loss": 0.5}\n{"step": 20, "val_loss": null}\n'
    )
    run = load_comparison(path).of("none")[0]
    assert run.best == 0.5 < run.value
    assert load_comparison(path).best_values("none") == {1: 0.5}


def test_where_higher_is_better_the_best_is_the_highest(folder, accuracy_task):
    comparison = load_comparison(folder.write(seeds=(1,), task=accuracy_task))
    run = comparison.of("none")[0]
    assert run.best == max(row["val_accuracy"] for row in run.metrics) > run.value
    assert (comparison.task.item, comparison.task.counted, comparison.task.value) == (
        "image",
        "image",
        "val_accuracy",
    )
    assert comparison.values("none", "test_loss").keys() == {1}


def test_a_task_with_a_wrong_metric_is_refused(folder, accuracy_task):
    path = folder.write(seeds=(1,), task=accuracy_task)
    folder.change("none", 1, task=accuracy_task | {"metrics": [{"name": "accuracy", "better": "up"}]})
    with pytest.raises(
        InputError, match=r"is damaged \(task.metrics.0.better: input should be 'lower' or 'higher'"
    ):
        load_comparison(path)


def test_two_tasks_do_not_compare(folder, accuracy_task):
    path = folder.write(seeds=(1,), task=accuracy_task)
    folder.change("twin", 1, task=accuracy_task | {"item": "page"})
    with pytest.raises(InputError, match="judged by different metrics"):
        load_comparison(path)


@pytest.mark.parametrize(
    ("folder", "item", "metrics"),
    [
        ("default", "byte", ["loss"]),
        ("layers", "byte", ["loss"]),
        ("block_dropout", "byte", ["loss"]),
        ("fine_tuning/all", "sentence", ["loss", "accuracy"]),
        ("fine_tuning/few", "sentence", ["loss", "accuracy"]),
    ],
)
def test_every_record_from_before_tasks_had_names_stays_readable(folder, item, metrics):
    comparison = load_comparison(EXPERIMENTS / folder)
    assert comparison.task.item == item
    assert [metric.name for metric in comparison.task.metrics] == metrics
    assert comparison.finished == comparison.cells
    for arm in comparison.arms:
        for metric in metrics:
            assert len(comparison.values(arm, f"val_{metric}")) == len(comparison.seeds)


def test_bytes_are_called_so_in_new_records_too(tmp_path, folder):
    path = folder.write(seeds=(1,))
    cell = folder.cell("none", 1)
    record = json.loads((cell / "run.json").read_text())
    task = {"name": "language", "item": "token", "metrics": [{"name": "loss", "unit": "nats"}]}
    folder.change("none", 1, task=task, data=record["data"] | {"tokenizer": "bytes"})
    run = load_run(cell)
    assert (run.task.item, run.task.counted) == ("byte", "token")
    shutil.rmtree(path)


def test_a_run_whose_lock_nobody_holds_was_killed(folder):
    path = folder.write(seeds=(1,))
    folder.change("none", 1, status="running")
    lock = FileLock(folder.cell("none", 1) / ".run.lock")
    assert load_comparison(path).of("none")[0].status == "running"  # without a lock it may run elsewhere
    with lock:
        assert load_comparison(path).of("none")[0].status == "running"
    for _ in range(2):  # looking leaves the lock where it is
        assert load_comparison(path).of("none")[0].status == "killed"


def test_a_comparison_goes_on_while_a_process_holds_its_lock(folder):
    path = folder.write(seeds=(1,))
    assert load_comparison(path).going_on is False
    with FileLock(path / ".comparison.lock"):
        assert load_comparison(path).going_on is True
    assert load_comparison(path).going_on is False


def test_names_lose_what_a_terminal_would_obey(folder, arm_of):
    name = "red\x1b[31m\n  arm\u202e"
    comparison = load_comparison(folder.write({name: arm_of(0.0), "b": arm_of(0.1)}, seeds=(1,)))
    assert comparison.arms[0] == "red\\x1b[31m arm\\u202e"
    assert comparison.of(comparison.arms[0])


def test_a_recipe_in_another_form_is_no_list_of_rules(folder):
    run = load_comparison(folder.write(seeds=(1,))).runs[0]
    record = dict(run.record) | {"config": {"recipe": "mine.yaml"}}
    assert replace(run, record=record).recipe == []


def test_a_training_that_has_not_reported_yet_is_tolerated(folder, accuracy_task):
    task = accuracy_task | {"name": "trial"}
    path = folder.write(seeds=(1, 2), task=task)
    folder.change("none", 1, task=task | {"metrics": []}, status="running", result=None)
    folder.change("none", 2, task=task | {"metrics": []})
    comparison = load_comparison(path)
    assert comparison.task.value == "val_accuracy"
    assert comparison.usable("none") == []
    folder.change("learned", 1, task=task | {"metrics": task["metrics"][:1]})
    assert len(load_comparison(path).usable("learned")) == 2


@pytest.mark.parametrize(
    ("item", "task"), [(None, "language"), ("sentence", "sentences"), ("token", "language")]
)
def test_a_comparison_that_has_not_begun_has_a_task(folder, item, task):
    path = folder.write(seeds=(1,))
    for record in path.glob("runs/*/*/run.json"):
        record.unlink()
    about = json.loads((path / "comparison.json").read_text())
    (path / "comparison.json").write_text(json.dumps(about | {"item": item}))
    comparison = load_comparison(path)
    assert (comparison.runs, comparison.task.name, comparison.metric.name) == ((), task, "loss")
