"""Ctrl-C at any time before a command's own work ends quietly."""

import importlib
import signal
import sys
from pathlib import Path

import pytest

from transformer_dropout import cli
from transformer_dropout.__main__ import main


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system tells nothing of what is loaded")
@pytest.mark.parametrize("library", ["libtorch_cpu", "_multiarray_umath"])
def test_while_libraries_are_loaded(start, config_file, tiny, library):
    process = start("train", config_file(tiny(steps=100_000)), "--dry-run")
    maps = Path(f"/proc/{process.pid}/maps")
    while library not in maps.read_text():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "")


def test_anywhere_else_it_ends_the_command_with_130(here, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(cli, "check_words", lambda words: signal.raise_signal(signal.SIGINT))
    result = here("train", "x.yaml")
    assert (result.code, result.out, result.err) == (130, "", "")
    assert signal.getsignal(signal.SIGINT) is before


def test_an_import_is_told_from_other_code(tmp_path, monkeypatch):
    (tmp_path / "asks.py").write_text("import sys\nframe = sys._getframe()\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert cli.is_importing(importlib.import_module("asks").frame)
    assert not cli.is_importing(sys._getframe())
    assert not cli.is_importing(None)


class Interrupts:
    """A finder of modules that Ctrl-C meets."""

    def find_spec(self, name, *rest):
        if name == "transformer_dropout.cli":
            raise KeyboardInterrupt


def test_while_the_command_line_itself_is_loaded(monkeypatch):
    monkeypatch.delitem(sys.modules, "transformer_dropout.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupts(), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
