"""How far a run is, by a small file in its folder."""

import json

import pytest

from transformer_dropout.compare.cells import Cell
from transformer_dropout.compare.progress import PROGRESS_FILE, FolderWatch, ProgressFile


@pytest.fixture
def cell(tmp_path, tiny):
    return Cell(config=tiny(), folder=tmp_path)


def test_what_a_run_tells_is_read_once(cell):
    told = []
    watch = FolderWatch([cell], lambda cell, event: told.append(event))
    watch.look(cell)
    file = ProgressFile(cell.folder)
    file.take({"message": "first"})
    watch.look(cell)
    watch.look(cell)
    assert told == [{"message": "first"}]
    file.take({"step": 3})
    file.write()
    file.take({"message": "second"})
    watch.look(cell)
    assert told[1:] == [{"message": "second"}, {"step": 3}]


def test_a_run_that_was_taken_up_again_tells_anew(cell):
    told = []
    watch = FolderWatch([cell], lambda cell, event: told.append(event["message"]))
    first = ProgressFile(cell.folder)
    first.take({"message": "one"})
    first.take({"message": "two"})
    watch.look(cell)
    ProgressFile(cell.folder).take({"message": "Continuing"})
    watch.look(cell)
    assert told == ["one", "two", "Continuing"]


def test_many_steps_are_few_writes_and_the_last_is_one_of_them(cell):
    texts = []
    file = ProgressFile(cell.folder, texts.append)
    for step in range(1000):
        file.take({"step": step})
    file.write()
    assert len(texts) < 50
    assert json.loads(texts[-1])["latest"] == {"step": 999}


def test_what_is_no_progress_file_tells_nothing(cell):
    (cell.folder / PROGRESS_FILE).write_text('{"latest": ')
    FolderWatch([cell], pytest.fail).look(cell)
