"""Progress travels by files: each message is told once, whoever wrote it and however often it is looked."""

import json
from types import SimpleNamespace

import pytest

from transformer_dropout.compare import progress as module
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


@pytest.mark.parametrize("finished", [True, False])
def test_the_last_of_a_cell_is_told_and_the_file_of_a_finished_one_goes(tmp_path, finished):
    cell, told = SimpleNamespace(folder=tmp_path, finished=finished), []
    watch = FolderWatch([cell], lambda *given: told.append(given))
    progress = ProgressFile(tmp_path)
    progress.take({"step": 3})
    progress.write()
    watch.close(cell)
    assert told == [(cell, {"step": 3})]
    assert (tmp_path / PROGRESS_FILE).exists() is not finished
    watch.close(cell)


def test_progress_is_written_now_and_then_and_messages_at_once(tmp_path, monkeypatch):
    clock, texts = [100.0], []
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    progress = ProgressFile(tmp_path, texts.append)
    progress.write()
    for seconds, event in (
        (0.0, {"step": 1}),
        (0.01, {"step": 2}),
        (0.0, {"message": "a"}),
        (99.0, {"step": 3}),
    ):
        clock[0] += seconds
        progress.take(event)
    told = [json.loads(text) for text in texts]
    assert [(one["latest"].get("step"), one["messages"]) for one in told] == [(1, []), (2, ["a"]), (3, ["a"])]
