"""The table of accuracies, from the records alone, and the command that ends in it."""

import json
from dataclasses import replace

import pytest

from transformer_dropout.cli.finetune import choose_reference, class_files
from transformer_dropout.compare.cells import make_cells
from transformer_dropout.compare.comparison import open_comparison
from transformer_dropout.compare.records import load_comparison
from transformer_dropout.compare.report import write_report
from transformer_dropout.errors import InputError
from transformer_dropout.tasks.sentences.accuracy import accuracy_table, write_accuracy
from transformer_dropout.tasks.sentences.run import run

MODULE = "transformer_dropout.tasks.sentences"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, configs):
    """Three arms x three seeds."""
    path = tmp_path_factory.mktemp("finetune") / "out"
    arms = [configs[name] for name in ("none", "bert", "rdrop")]
    open_comparison(path, arms, [0, 1, 2], {"command": "dropout finetune", "reference": "bert"})
    for cell in make_cells(arms, [0, 1, 2], path, module=MODULE):
        run(cell.config, cell.folder)
        assert cell.finished
    return path


def test_the_report_reads_the_runs(folder):
    page = write_report(folder).read_text(encoding="utf-8")
    assert "24 documents" in page
    assert "RDrop" in page
    summary = json.loads((folder / "summary.json").read_text())
    assert [arm["verdict"] for arm in summary["arms"]][1] == "reference"
    # R-Drop is no plain dropout: it must not stand for dropout where the setting is judged.
    assert "rdrop beats" not in summary["regime"]["text"]


def test_the_table_pairs_accuracies_by_seed(folder, tmp_path, configs):
    for name, values in {
        "none": (0.5, 0.6, 0.7),
        "bert": (0.6, 0.7, 0.81),
        "rdrop": (0.6, 0.7, 0.81),
    }.items():
        for seed, value in enumerate(values):
            path = folder / "runs" / name / f"seed-{seed}" / "run.json"
            record = json.loads(path.read_text())
            record["result"]["test_accuracy"] = value
            path.write_text(json.dumps(record))
    table = accuracy_table(load_comparison(folder))
    none, bert, rdrop = table.rows
    assert none[:4] == ("none", "3", "60.00 ± 24.84", "-10.33 [-11.77, -8.90]")
    assert none[4].startswith("worse (p = 0.002")
    assert (bert[3], bert[4], bert[-1]) == ("reference", "reference", "reference")
    assert rdrop[3:5] == ("+0.00 [+0.00, +0.00]", "no difference shown (p = 1.00)")
    text = write_accuracy(folder).read_text(encoding="utf-8")
    assert text.startswith("| arm | seeds | test accuracy % ± 95 % | minus bert, points [95 %] |")
    assert "test sentences are the same for all; other ones would move every accuracy by about ± " in text


def test_runs_that_are_missing_leave_gaps(tmp_path, configs):
    arms = [configs["none"], configs["bert"]]
    open_comparison(tmp_path / "out", arms, [0, 1], {"command": "", "reference": "bert"})
    run(replace(configs["none"], seed=1), tmp_path / "out" / "runs" / "none" / "seed-1")
    rows = accuracy_table(load_comparison(tmp_path / "out")).rows
    assert [row[1] for row in rows] == ["1", "0"]
    assert rows[0][3:5] == ("–", "not judged")
    assert rows[1][2] == "–"
    write_accuracy(tmp_path / "out")


def test_what_the_command_line_names():
    assert class_files(["a=x=1", "b=y"])["a"].name == "x=1"
    with pytest.raises(InputError, match="--class 'a' names no file"):
        class_files(["a"])
    with pytest.raises(InputError, match="given twice"):
        class_files(["a=x", "a=y"])
    assert choose_reference(None, ["none", "bert"]) == "bert"
    assert choose_reference(None, ["none"]) == "none"
    with pytest.raises(InputError, match="--reference 'x' is no arm"):
        choose_reference("x", ["none"])
