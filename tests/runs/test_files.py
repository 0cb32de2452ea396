"""Whole files or none, and clear words when the disk refuses."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from transformer_dropout.errors import InputError
from transformer_dropout.runs.files import (
    clear_write_errors,
    flush_to_disk,
    write_atomically,
    write_json,
    write_tensors,
)

REWRITE_FOREVER = """
import sys
from pathlib import Path
from transformer_dropout.runs.files import write_atomically
texts = ["a" * 200_000, "b" * 300_000]
for n in range(10**9):
    write_atomically(Path(sys.argv[1]), texts[n % 2])
"""


def test_a_text_replaces_the_old_one_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_atomically(path, "old")
    write_atomically(path, "né")
    assert path.read_text(encoding="utf-8") == "né"
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_leaves_the_old_or_the_new_file_whole(tmp_path, environment):
    path = tmp_path / "a.txt"
    process = subprocess.Popen([sys.executable, "-c", REWRITE_FOREVER, str(path)], env=environment)
    while not path.exists():
        time.sleep(0.01)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert path.read_text() in ("a" * 200_000, "b" * 300_000)


def test_json_ends_in_a_newline_and_reads_back(tmp_path):
    write_json(tmp_path / "a.json", {"x": [1, None]})
    text = (tmp_path / "a.json").read_text()
    assert text == '{\n "x": [\n  1,\n  null\n ]\n}\n'


def test_tensors_are_written_whatever_their_layout(tmp_path):
    tensors = {"t": torch.arange(6.0).view(2, 3).t(), "scalar": torch.tensor(2)}
    write_tensors(tmp_path / "a.safetensors", tensors, {"format": "pt"})
    loaded = load_file(tmp_path / "a.safetensors")
    assert loaded["t"].equal(tensors["t"])
    assert loaded["scalar"] == 2


def test_a_place_that_cannot_be_written_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="No such file") as caught:
        write_tensors(tmp_path / "missing" / "a.safetensors", {"t": torch.zeros(1)})
    assert caught.value.errno == errno.ENOENT


def test_a_fault_of_the_program_stays_one(tmp_path, monkeypatch):
    def refuse(tensors, path, metadata):
        raise SafetensorError("a fault that is not the disk's")

    monkeypatch.setattr("transformer_dropout.runs.files.save_file", refuse)
    with pytest.raises(SafetensorError):
        write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1)})


def test_flushing_takes_a_folder_of_files(tmp_path):
    (tmp_path / "a").write_text("x")
    flush_to_disk(tmp_path)
    assert (tmp_path / "a").read_text() == "x"
    with pytest.raises(FileNotFoundError):
        flush_to_disk(tmp_path / "missing")


def test_a_refusal_of_the_system_becomes_one_sentence(tmp_path):
    with (
        pytest.raises(InputError, match=f"^Cannot write to {tmp_path}: no space left on device; [^\n]+$"),
        clear_write_errors(tmp_path),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_other_errors_pass(tmp_path):
    with pytest.raises(KeyError), clear_write_errors(tmp_path):
        raise KeyError("a")


def test_tied_tensors_are_written_each(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    write_tensors(tmp_path / "t.safetensors", {"a": weight, "b": weight, "c": weight[:1]})
    read = load_file(tmp_path / "t.safetensors")
    assert read["a"].equal(weight) and read["b"].equal(weight) and read["c"].equal(weight[:1])
