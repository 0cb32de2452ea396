"""Progress travels by files: each message is told once, whoever wrote it and however often it is looked."""

import pytest

from transformer_dropout.compare.cells import make_cells
from transformer_dropout.compare.progress import PROGRESS_FILE, FolderWatch, ProgressFile


@pytest.fixture
def cell(tmp_path, tiny):
    (cell,) = make_cells([tiny("a")], [0], tmp_path)
    cell.folder.mkdir(parents=True)
    return cell


@pytest.fixture
def watch(cell):
    told = []
    watch = FolderWatch([cell], lambda cell, event: told.append(event))
    watch.told = told
    return watch


def test_a_message_is_told_once_and_steps_as_they_are(cell, watch):
    progress = ProgressFile(cell.folder)
    progress.take({"message": "first"})
    progress.take({"step": 1})
    progress.write()
    watch.look(cell)
    watch.look(cell)
    assert watch.told == [{"message": "first"}, {"step": 1}]
    progress.take({"message": "second"})
    watch.look(cell)
    assert watch.told[2:] == [{"message": "second"}, {"step": 1}]


def test_a_run_that_was_taken_up_again_is_heard_from_its_beginning(cell, watch):
    first = ProgressFile(cell.folder)
    for text in ("one", "two"):
        first.take({"message": text})
    watch.look(cell)
    again = ProgressFile(cell.folder)
    for text in ("Continuing from step 5.", "two"):
        again.take({"message": text})
    watch.look(cell)
    assert [event["message"] for event in watch.told] == ["one", "two", "Continuing from step 5.", "two"]


def test_a_file_that_cannot_be_read_yet_is_looked_at_again(cell, watch):
    file = cell.folder / PROGRESS_FILE
    file.write_text('{"latest": {}, "mess')
    watch.look(cell)
    assert watch.told == []
    ProgressFile(cell.folder).take({"message": "now"})
    watch.look(cell)
    assert watch.told == [{"message": "now"}]


def test_what_an_earlier_call_left_is_no_news(cell, watch):
    ProgressFile(cell.folder).take({"message": "old"})
    with watch.running():
        pass
    watch.close(cell)
    assert watch.told == []
