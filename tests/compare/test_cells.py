"""One cell is one real process: it ends, fails, is killed or is stopped, and says so."""

import json
import signal

import pytest

from transformer_dropout.compare.cells import Cell, CellRunner, make_cells, why
from transformer_dropout.runs.record import read_metrics, read_run
from transformer_dropout.runs.run import run


def ignore(cell, event):
    """Listen to nothing."""


@pytest.fixture
def cell(tmp_path, tiny):
    def make(**training):
        return Cell(config=tiny(**training), folder=tmp_path / "run")

    return make


def test_cells_go_seed_by_seed_so_that_an_early_look_compares_all_arms(tmp_path, tiny):
    cells = make_cells([tiny("A b"), tiny("c")], [0, 7], tmp_path)
    assert [(cell.config.name, cell.config.seed) for cell in cells] == [
        ("A b", 0),
        ("c", 0),
        ("A b", 7),
        ("c", 7),
    ]
    assert cells[2].folder == tmp_path / "runs" / "a-b" / "seed-7"
    assert cells[2].name == "A b, seed 7"


def test_a_cell_runs_in_its_folder_and_tells_its_progress(cell):
    events = []
    one = cell()
    outcome = CellRunner(lambda cell, event: events.append((cell, event)))(one)
    assert (outcome.status, outcome.reason) == ("finished", "")
    assert one.finished
    assert events[-1][0] is one
    assert events[-1][1]["step"] == 20
    assert events[-1][1].keys() == {"step", "steps", "loss", "val_loss", "keep"}
    # The same run in this process gives the same numbers.
    run(one.config, one.folder.with_name("here"))
    losses = [
        [row["val_loss"] for row in read_metrics(folder / "metrics.jsonl")]
        for folder in (one.folder, one.folder.with_name("here"))
    ]
    assert losses[0] == losses[1]


def test_a_finished_cell_starts_no_process(cell):
    one = cell()
    run(one.config, one.folder)
    before = {path: path.stat().st_mtime_ns for path in one.folder.rglob("*")}
    assert CellRunner(ignore)(one).status == "finished"
    assert {path: path.stat().st_mtime_ns for path in one.folder.rglob("*")} == before


def test_a_finished_run_of_another_config_does_not_count(cell):
    run(cell().config, cell().folder)
    assert not cell(lr=0.5).finished


def test_a_cell_that_fails_says_why_and_where_the_rest_is(cell):
    one = cell(lr=1e30)
    outcome = CellRunner(ignore)(one)
    assert outcome.status == "failed"
    assert outcome.reason.startswith("The loss was not finite at step 2;")
    assert outcome.reason.endswith(f"({one.folder / 'log.txt'})")


def test_a_cell_whose_process_is_killed_is_a_failed_one_and_the_next_call_continues_it(cell):
    one = cell(steps=200, eval_every=10)

    def kill(cell, event):
        for process in runner._running:
            process.kill()

    runner = CellRunner(kill)
    outcome = runner(one)
    assert outcome.status == "failed"
    assert "killed by signal 9" in outcome.reason
    messages = []
    assert CellRunner(lambda cell, event: messages.append(event.get("message")))(one).status == "finished"
    assert any(message and message.startswith("Continuing from step") for message in messages)


def test_a_request_to_stop_reaches_the_process_and_no_other_is_started(cell):
    one = cell(steps=1000, eval_every=1000)
    runner = CellRunner(lambda cell, event: runner.stop(signal.SIGTERM))
    assert runner(one).status == "stopped"
    assert read_run(one.folder)["status"] == "interrupted"
    other = Cell(config=one.config, folder=one.folder.with_name("other"))
    assert runner(other).status == "stopped"
    assert not other.folder.exists()


@pytest.mark.parametrize(
    ("log", "code", "reason"),
    [
        ("first\nlast words\n", 1, "last words ({log})"),
        ("", 7, "exit code 7; see {log}"),
        ("anything", -11, "killed by signal 11; see {log}"),
    ],
)
def test_the_reason_is_the_last_line_of_the_log(tmp_path, log, code, reason):
    path = tmp_path / "log.txt"
    path.write_text(log)
    assert why(path, code) == reason.format(log=path)


def test_a_record_that_a_kill_cut_short_is_not_finished(cell):
    one = cell()
    one.folder.mkdir()
    (one.folder / "run.json").write_text(json.dumps({"status": "finished"})[:-5])
    assert not one.finished
