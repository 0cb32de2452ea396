"""The command line, as a process of its own or, where that does not matter, in this one."""

import subprocess
import sys
from dataclasses import dataclass

import pytest

from transformer_dropout import cli

COMMAND = [sys.executable, "-m", "transformer_dropout"]


@dataclass(frozen=True, kw_only=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def start(environment, tmp_path):
    """Start the command as a process, in a folder of its own."""
    processes = []

    def start(*arguments):
        process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=environment | {"COLUMNS": "200"},
            start_new_session=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def command(start):
    """Run the command as a process to its end."""

    def command(*arguments):
        process = start(*arguments)
        out, err = process.communicate(timeout=300)
        return Result(code=process.returncode, out=out, err=err)

    return command


@pytest.fixture
def here(monkeypatch, tmp_path, capsys):
    """Run the command's ``main`` in this process, which saves the start of another."""

    def here(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["dropout", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return Result(code=code, out=captured.out, err=captured.err)

    return here


@pytest.fixture
def snapshot(tmp_path):
    """Return every file below the test's folder with its bytes and its time."""

    def snapshot():
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}

    return snapshot


@pytest.fixture
def config_file(tmp_path):
    """Write a run config and return its path."""

    def write(config, name="my.yaml"):
        path = tmp_path / name
        path.write_text(config.to_yaml())
        return path

    return write
