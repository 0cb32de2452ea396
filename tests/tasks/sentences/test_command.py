"""The command from end to end: processes, tables, and a second call that does nothing."""

import sys

import pytest

from transformer_dropout.cli import app, main


@pytest.fixture
def command(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["dropout", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0, capsys.readouterr()

    return call


@pytest.mark.slow
def test_the_command_runs_every_cell_once_and_shows_both_tables(command, model_dir, class_paths, tmp_path):
    classes = [part for name, path in class_paths.items() for part in ("--class", f"{name}={path}")]
    arguments = ["finetune", *classes, "--model", model_dir, "--arm", "none", "--arm", "bert", "--seeds", 2]
    arguments += ["--train-sentences", 16, "--epochs", 1, "--out", tmp_path / "out", "--jobs", 2]
    code, printed = command(*arguments)
    assert (code, printed.err) == (0, "")
    assert "bert, seed 1: finished" in printed.out
    assert "test accuracy" in printed.out
    assert (tmp_path / "out" / "report.html").is_file()
    (tmp_path / "out" / "accuracy.md").unlink()
    assert command("report", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "accuracy.md").is_file()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "runs").rglob("*")}
    assert command(*arguments)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "runs").rglob("*")} == before
    code, printed = command(*arguments, "--lr", "1e-4")
    assert code == 2
    assert "set up differently" in printed.err


def test_bad_input_is_one_sentence_and_nothing_is_written(command, tmp_path, class_paths, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, printed = command("finetune", "--class", f"neg={class_paths['neg']}", "--model", "here")
    assert (code, printed.out) == (2, "")
    assert "at least two classes" in printed.err
    assert not list(tmp_path.iterdir())


def test_the_command_is_there():
    assert "finetune" in [command.name for command in app.registered_commands]
