"""Commands that can tell runs apart, what of their output is a row, and how they are stopped."""

import json
import os
import signal
import sys
from types import SimpleNamespace

import pytest

import transformer_dropout as td
from transformer_dropout.errors import InputError
from transformer_dropout.runs.record import read_metrics
from transformer_dropout.runs.run import Interrupted
from transformer_dropout.runs.stop_signals import StopRequest
from transformer_dropout.runs.trial_command import (
    check_command,
    numbers_of,
    pass_on,
    row_of,
    run_command,
    take_rows,
    writes_itself,
)


@pytest.mark.parametrize(
    ("command", "settings", "has_recipes"),
    [
        ("train {seed}", set(), False),
        ("train {seed} {recipe} {out} {folder} {name} {steps} {lr:.3f}", {"lr"}, True),
        ("train --seed={seed} '{{}}'", set(), False),
    ],
)
def test_a_command_that_tells_runs_apart_is_taken(command, settings, has_recipes):
    check_command(command, settings, has_recipes=has_recipes)


@pytest.mark.parametrize(
    ("command", "has_recipes", "words"),
    [
        (
            "train {seed} {lr}",
            False,
            r"nobody fills \{lr\}; there are: a, b, folder, name, out, recipe, seed, steps",
        ),
        ("train {seed} {z} {y}", False, r"nobody fills \{y\}"),
        ("", False, "names no command"),
        ("train", False, r"without \{seed\} in the command"),
        ("train {seed}", True, r"takes no \{recipe\}"),
        ("train {seed} {", False, r"write \{\{ and \}\} for braces"),
    ],
)
def test_any_other_is_refused(command, has_recipes, words):
    with pytest.raises(InputError, match=words):
        check_command(command, {"a", "b"}, has_recipes=has_recipes)


@pytest.mark.parametrize(
    ("line", "row"),
    [
        ('{"step": 3, "loss": 1.5, "note": "x", "list": [1]}', {"step": 3, "loss": 1.5}),
        ('{"step": 3.5}', None),
        ('{"loss": 3}', None),
        ('{"step": 3', None),
        ('["step", 3]', None),
        (' {"step": 3}', None),
        ("step 3", None),
    ],
)
def test_a_row_is_a_line_of_json_with_a_step(line, row):
    assert row_of(line) == row


def test_words_in_a_row_are_no_metrics():
    assert numbers_of({"a": 1, "b": "1", "c": None, "d": [1], "e": 2.5}) == {"a": 1, "e": 2.5}


def test_rows_that_a_command_wrote_are_merged_by_their_step(tmp_path):
    trial = td.Trial(folder=tmp_path)
    assert not writes_itself(trial)
    lines = [{"step": 2, "val_loss": 1.0}, {"step": 1, "eval_loss": 3.0}, {"step": 2, "val_f1": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert writes_itself(trial)
    take_rows(trial)
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 1, "val_loss": 3.0},
        {"step": 2, "val_f1": 0.5},
    ]
    assert list(trial.metrics) == ["loss", "f1"]
    trial.records.content["task"]["rows"] = "output"
    assert not writes_itself(trial)


def test_a_line_that_is_no_row_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnone\n')
    with pytest.raises(InputError, match=r'metrics\.jsonl:2 is no row of metrics; write \{"step": 10'):
        take_rows(td.Trial(folder=tmp_path))


class Running(SimpleNamespace):
    """A process that ends when it is signalled, or after so many looks."""

    def poll(self):
        self.looks -= 1
        return None if self.looks >= 0 and not self.sent else 0

    def send_signal(self, number):
        self.sent.append(number)


@pytest.mark.parametrize(
    ("asked", "file", "sent"),
    [(signal.SIGINT, False, [signal.SIGINT]), (None, True, [signal.SIGTERM]), (None, False, [])],
)
def test_a_request_to_stop_is_passed_on_once(tmp_path, monkeypatch, asked, file, sent):
    waited = []
    monkeypatch.setattr("transformer_dropout.runs.trial_command.time.sleep", waited.append)
    if file:
        (tmp_path / "stop").touch()
    process = Running(looks=3, sent=[])
    stop = StopRequest()
    stop.signal = asked
    pass_on(stop, process, tmp_path)
    assert process.sent == sent
    assert waited == ([] if sent else [0.1] * 3)


def test_a_command_is_told_what_its_trial_is_of(tmp_path, capsys):
    code = 'import sys; print(sys.argv[1:]); print(\'{\\"step\\": 4, \\"val_loss\\": 2}\')'
    code = code.replace("{", "{{").replace("}", "}}")
    trial = td.Trial(folder=tmp_path, seed=3, steps=9, name="mine", settings={"lr": 0.5})
    words = "{seed} {out} {folder} {steps} {name} {lr}"
    run_command(f'{sys.executable} -c "{code}" {words}', trial)
    told = ["3", str(tmp_path), str(tmp_path), "9", "mine", "0.5"]
    record = trial.records.content
    assert record["command"]["words"][3:] == told
    assert record["command"]["last_lines"] == [str(told), '{"step": 4, "val_loss": 2}']
    assert record["command"]["exit_code"] == 0 and 0 < record["command"]["seconds"] < 60
    assert capsys.readouterr().err.splitlines() == record["command"]["last_lines"]
    assert (record["task"]["rows"], trial.step) == ("output", 4)
    assert (tmp_path / "recipe.yaml").read_text() == trial.recipe.to_yaml()


def test_the_last_lines_are_kept_and_the_last_that_says_something_is_the_reason(tmp_path):
    code = "import sys; [print(n) for n in range(30)]; print(); sys.exit(3)"
    trial = td.Trial(folder=tmp_path)
    with pytest.raises(InputError, match=r"^The command ended with exit code 3: 29$"):
        run_command(f'{sys.executable} -c "{code}"', trial)
    assert trial.records.content["command"]["last_lines"] == [*map(str, range(11, 30)), ""]
    with pytest.raises(InputError, match=r"exit code 3: it printed nothing$"):
        run_command(f'{sys.executable} -c "import sys; sys.exit(3)"', trial)


def test_a_row_that_is_refused_ends_the_command(tmp_path):
    code = "import time; print('{\\\"step\\\": -1}', flush=True); time.sleep(60)"
    code = code.replace("{", "{{").replace("}", "}}")
    with pytest.raises(InputError, match="steps are whole numbers from 0 on"):
        run_command(f'{sys.executable} -c "{code}"', td.Trial(folder=tmp_path))


def test_a_command_that_was_asked_to_stop_is_interrupted_at_its_step(tmp_path, monkeypatch):
    def read(process, trial, last):
        trial.report(step=4, val_loss=1.0)
        signal.raise_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM

    monkeypatch.setattr("transformer_dropout.runs.trial_command.read_output", read)
    with pytest.raises(Interrupted) as stopped:
        run_command(f'{sys.executable} -c "import time; time.sleep(60)"', td.Trial(folder=tmp_path))
    assert (stopped.value.signal, stopped.value.step) == (signal.SIGTERM, 4)


def test_what_cannot_be_started_is_one_sentence(tmp_path):
    with pytest.raises(
        InputError, match=r"^--run: '/no/such' cannot be started: no such file or directory\.$"
    ):
        run_command("/no/such", td.Trial(folder=tmp_path))


def test_a_command_reads_nothing_of_what_its_asker_is_given(tmp_path):
    ours, theirs = os.pipe()
    before = os.dup(0)
    os.write(theirs, b"meant for others")
    os.close(theirs)
    os.dup2(ours, 0)
    try:
        trial = td.Trial(folder=tmp_path)
        run_command(f'{sys.executable} -c "import sys; print(repr(sys.stdin.read()))"', trial)
    finally:
        os.dup2(before, 0)
        os.close(before), os.close(ours)
    assert trial.records.content["command"]["last_lines"] == ["''"]
