"""``dropout report`` on the committed record."""

import shutil
import sys
from pathlib import Path

from transformer_dropout import cli

RECORD = Path(__file__).parents[2] / "experiments" / "default"


def test_a_piped_table_breaks_no_name_and_no_path(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "a folder of which the name is so long that no terminal has room for it in one line"
    shutil.copytree(RECORD, folder)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(sys, "argv", ["dropout", "report", str(folder)])
    try:
        cli.main()
    except SystemExit as end:
        assert not end.code
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if line.count("│") > 3 and "pre-computed" in line]
    assert "LearnedDropout, pre-computed masks" in row and "3.004" in row
    (last,) = [line for line in lines if line.startswith("Report: ")]
    assert last.endswith(".html") and str(folder.resolve()) in last
