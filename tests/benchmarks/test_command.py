"""``python -m benchmarks``: timings in a table, a page and a record."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import mask_operation
from transformer_dropout.cli import main

ROOT = Path(__file__).parents[2]


def run(*arguments, environment, folder):
    """Run the command as a process of its own."""
    path = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=folder,
        env=environment | {"COLUMNS": "200", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_chosen_rows_end_in_a_page_and_a_record(environment, tmp_path):
    words = ["--quick", "--row", "bytes*", "--row", "*GPU*", "--no-growth", "--out", "timings"]
    done = run(*words, environment=environment, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "timings"
    record = json.loads((folder / "record.json").read_text())
    assert str(folder / "RESULTS.md") in done.stdout
    assert "oneDNN" in done.stdout
    statuses = {row["name"]: row["status"] for row in record["rows"]}
    assert statuses["bytes the mask keeps for its backward, an element"] == "met"
    assert record["command"].startswith("python -m benchmarks --quick")
    assert record["machine"]["threads"] == 1
    assert "| bytes the mask keeps for its backward, an element | pure | ≤ 1 | 1 | met |" in (
        (folder / "RESULTS.md").read_text()
    )


def test_a_target_that_is_missed_comes_with_what_is_in_its_way(monkeypatch, tmp_path, capsys):
    row = next(row for row in mask_operation.ROWS if "bytes" in row.name)
    monkeypatch.setattr(command, "all_rows", lambda: [replace(row, target=0.5, obstacle="One byte.")])
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--quick", "--no-growth", "--out", str(tmp_path / "out")])
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit) as end:
        main(command.app)
    torch.set_num_threads(threads)
    assert not end.value.code
    assert "In the way of bytes the mask keeps for its backward, an element, pure: One byte." in " ".join(
        capsys.readouterr().out.split()
    )


def test_a_row_that_is_none_is_refused_and_nothing_is_written(environment, tmp_path):
    done = run("--row", "maks*", "--out", "timings", environment=environment, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "No row matches 'maks*'; the rows are: linear layer" in done.stderr
    assert not (tmp_path / "timings").exists()
