"""The report of one run: its numbers, rates and masks over time, whether it is finished or not."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from filelock import FileLock

from transformer_dropout.compare.records import load_run
from transformer_dropout.compare.run_plots import keep_figure, metric_figure, planned_rates, rate_figure
from transformer_dropout.compare.run_report import run_sentence, run_table, write_run_report
from transformer_dropout.errors import InputError

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def learned(folder):
    """The folder of one run with masks."""
    folder.write(seeds=(1,))
    return folder.cell("learned", 1)


def test_the_page_of_one_run(learned):
    page = write_run_report(learned).read_text()
    assert "learned, seed 1: validation loss 2.3" in page
    assert "nats per token at the end" in page
    assert page.count("<figure>") == 2  # the loss and the learning rate; masks are recorded by site only
    assert page.count("<svg") == 2
    assert "select: mlp_output" in page
    assert "http-equiv" not in page
    assert "finished, step 2,000 of 2,000." in page


def test_a_run_that_is_going_on_reloads_and_a_killed_one_says_so(folder, learned):
    folder.change("learned", 1, status="running", result=None)
    with FileLock(learned / ".run.lock"):
        assert 'http-equiv="refresh"' in write_run_report(learned).read_text()
    page = write_run_report(learned).read_text()
    assert "killed: its process is gone" in page
    assert "http-equiv" not in page


def test_every_metric_has_a_row_and_its_best(folder, accuracy_task):
    folder.write(seeds=(1,), task=accuracy_task)
    run = load_run(folder.cell("none", 1))
    table = run_table(run)
    assert [row[0] for row in table.rows] == ["accuracy, %", "loss, nats per image"]
    best = max(row["val_accuracy"] for row in run.metrics)
    assert table.rows[0][4] == f"{100 * best:.4f}"
    assert run_sentence(run).startswith("validation accuracy 4")
    assert metric_figure(run, run.task.metric) is not None


def test_rates_are_those_recorded_else_those_planned(learned):
    run = load_run(learned)
    rule = {"select": "block", "layer": "Dropout", "p": {"linear": {"start": 0.2, "end": 0.0}}}
    rule["depth"] = {"linear": {"start": 0.0, "end": 1.0}}
    record = json.loads((learned / "run.json").read_text())
    record["config"]["recipe"] = [rule, {"select": "embedding", "layer": "LearnedDropout", "heads": 2}]
    (learned / "run.json").write_text(json.dumps(record))
    rates = planned_rates(load_run(learned))
    assert list(rates) == ["Dropout, block, depth factor 0", "Dropout, block, depth factor 1"]
    assert rates["Dropout, block, depth factor 1"][0] == (0, 0.2)
    assert rates["Dropout, block, depth factor 1"][10] == (1000, pytest.approx(0.1))
    assert {value for _, value in rates["Dropout, block, depth factor 0"]} == {0.0}
    rows = [row | {"rate_by_site": {"h.0": 0.3}} for row in run.metrics]
    (learned / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    figure = rate_figure(load_run(learned))
    assert "h.0" in figure
    assert "depth factor" not in figure


def test_masks_are_drawn_by_layer():
    run = load_run(EXPERIMENTS / "default" / "runs" / "learneddropout" / "seed-0")
    figure = keep_figure(run)
    assert all(site in figure for site in run.metrics[-1]["keep_by_site"])


def test_a_folder_that_holds_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"run.json cannot be read"):
        write_run_report(tmp_path)


def test_a_training_that_has_not_reported_yet_has_a_page(folder, learned):
    task = {"name": "trial", "item": "run", "metrics": []}
    folder.change("learned", 1, task=task, status="failed", error="no such file", result=None)
    assert "failed: no such file" in write_run_report(learned).read_text()


@pytest.mark.parametrize("rows", ["", '{"step": 5}\n'])
def test_a_run_that_measured_nothing_yet_has_a_page(folder, learned, rows):
    folder.change("learned", 1, status="running", result=None)
    (learned / "metrics.jsonl").write_text(rows)
    assert "running" in write_run_report(learned).read_text()


def words(svg):
    return [text for node in ElementTree.fromstring(svg).iter() if (text := (node.text or "").strip())]


def test_figures_say_what_they_show(folder, learned, accuracy_task):
    run = load_run(learned)
    rows = [row | {"rate_by_site": {"h.0": 0.3}, "keep_by_site": {"h.0": 0.5}} for row in run.metrics]
    (learned / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = load_run(learned)
    found = words(metric_figure(run, run.task.metric))
    assert {"Loss over the steps", "loss, nats per token", "step", "training", "validation"} <= set(found)
    found = words(rate_figure(run))
    assert {"Rates as they were", "rate of dropping", "learning rate", "step", "h.0", "lr"} <= set(found)
    found = words(keep_figure(run))
    assert {"What the masks keep, by layer", "kept in training", "h.0"} <= set(found)
    assert "kept in evaluation" not in found and any(text.endswith("%") for text in found)
    folder.write(seeds=(2,), task=accuracy_task)
    run = load_run(folder.cell("none", 2))
    found = words(metric_figure(run, run.task.metric))
    assert {"Accuracy over the steps", "accuracy"} <= set(found) and any(text.endswith("%") for text in found)


def test_planned_rates_follow_the_steps_of_the_run_or_those_it_has(learned):
    record = json.loads((learned / "run.json").read_text())
    rule = {"p": {"linear": {"start": 0.0, "end": 0.4}}}
    for steps, half in ((4000, 2000), (None, 1000)):
        record["config"] |= {"recipe": [rule], "training": {"steps": steps}}
        (learned / "run.json").write_text(json.dumps(record))
        (rates,) = planned_rates(load_run(learned)).items()
        assert rates[0] == "layer, all"
        assert dict(rates[1])[half] == pytest.approx(0.2)
    (learned / "metrics.jsonl").write_text("")
    assert planned_rates(load_run(learned)) == {"layer, all": []}


def test_the_page_of_a_run_has_its_facts_and_what_went_wrong(folder, learned):
    folder.change("learned", 1, alarms=["The masks of h.0 keep everything."], notes=["Continued elsewhere."])
    page = write_run_report(learned).read_text()
    for text in ("EPYC", "python 3.11.7", f"sha256 {'a' * 64}", "The masks of h.0", "Continued elsewhere."):
        assert text in page
    folder.change("learned", 1, status="diverged", error="not finite at step 3")
    assert "diverged: not finite at step 3" in write_run_report(learned).read_text()
