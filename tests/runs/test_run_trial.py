"""A function of the user's in its run folder: what it ends in, and what could be verified of it."""

import json
import sys

import pytest
from filelock import FileLock

from transformer_dropout.errors import InputError
from transformer_dropout.runs.listener import Listener
from transformer_dropout.runs.record import read_metrics, read_run
from transformer_dropout.runs.run import Interrupted
from transformer_dropout.runs.run_trial import run_trial
from transformer_dropout.runs.trial_config import TrialConfig, digests, load_trial_config

RULE = {"select": "mlp_output", "layer": "Dropout", "p": 0.1}
CODE = """
import sys
import torch
import transformer_dropout as td
from torch import nn

def model():
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

def applies(trial):
    td.regularize_(model(), trial.recipe)
    trial.report(step=1, val_loss=trial.settings.get("loss", 1.0) + trial.seed)

def forgets(trial):
    trial.report(step=1, val_loss=1.0)

def another(trial):
    td.regularize_(model(), td.recipes.lima())
    trial.report(step=1, val_loss=1.0)

def fails(trial):
    trial.report(step=1, val_loss=1.0)
    raise ValueError("no such\\nlayer")

def stops(trial):
    raise KeyboardInterrupt

def exits(trial):
    trial.report(step=1, val_loss=1.0)
    sys.exit(trial.settings["code"])
"""


@pytest.fixture
def trial(tmp_path):
    """Run one function of a user's file in a folder."""
    file = tmp_path / "mine.py"
    file.write_text(CODE)

    def trial(name, **changes):
        config = TrialConfig(function=f"{file}:{name}", programs=digests([file]), **changes)
        return run_trial(config, tmp_path / "run", Listener())

    return trial


def test_a_trial_ends_with_its_record_and_is_not_repeated(trial, tmp_path):
    record = trial("applies", seed=2, settings={"loss": 0.5}, recipe=[RULE])
    assert (record["status"], record["result"]["val_loss"], record["seed"]) == ("finished", 2.5, 2)
    assert record == read_run(tmp_path / "run")
    assert record["checks"]["recipe_applied"] is True
    (tmp_path / "mine.py").unlink()
    again = TrialConfig(**record["config"])
    assert run_trial(again, tmp_path / "run", Listener()) == record


@pytest.mark.parametrize(
    ("name", "recipe", "applied"),
    [
        ("applies", [RULE], True),
        ("forgets", [RULE], False),
        ("another", [RULE], False),
        ("forgets", [], True),
        ("another", [], False),
    ],
)
def test_whether_the_recipe_was_applied_is_seen(trial, name, recipe, applied):
    assert trial(name, recipe=recipe)["checks"]["recipe_applied"] is applied


def test_a_failure_is_one_sentence_and_its_traceback_is_told(trial, tmp_path, capsys):
    with pytest.raises(InputError, match=r"^ValueError: no such layer$"):
        trial("fails")
    assert "Traceback" in capsys.readouterr().err
    assert read_run(tmp_path / "run")["status"] == "failed"
    assert read_run(tmp_path / "run")["error"] == "ValueError: no such layer"


def test_ctrl_c_leaves_an_interrupted_run(trial, tmp_path):
    with pytest.raises(Interrupted):
        trial("stops")
    assert read_run(tmp_path / "run")["status"] == "interrupted"


def test_a_script_that_ends_itself_ends_well_with_0_alone(trial):
    assert trial("exits", settings={"code": 0})["status"] == "finished"
    with pytest.raises(InputError, match=r"holds another run"):
        trial("exits", settings={"code": 3})


def test_a_script_that_ends_itself_with_another_code_failed(trial):
    with pytest.raises(InputError, match=r"The training ended with sys\.exit\(3\)"):
        trial("exits", settings={"code": 3})


def test_a_program_that_has_changed_or_is_not_here_is_refused(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(CODE)
    config = TrialConfig(function=f"{file}:applies", programs=digests([file]))
    file.write_text(CODE + "\n")
    with pytest.raises(InputError, match="has changed since the comparison began"):
        run_trial(config, tmp_path / "run", Listener())
    file.unlink()
    with pytest.raises(InputError, match=r"There is no .*mine\.py on this machine"):
        run_trial(config, tmp_path / "run", Listener())
    assert not (tmp_path / "run").exists()


def test_a_config_is_read_as_it_was_written(tmp_path):
    config = TrialConfig(
        name="a", seed=3, recipe=[RULE], settings={"lr": 1e-3, "words": ["x"]}, steps=5, metric="val_f1"
    )
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert load_trial_config(path) == config
    assert load_trial_config(path).fingerprint() == config.fingerprint()


COMMAND = f"{sys.executable} -c"


def command(tmp_path, text, **changes):
    config = TrialConfig(command=text, **changes)
    return run_trial(config, tmp_path / "run", Listener())


def test_a_command_prints_rows_of_json(tmp_path):
    code = (
        "import sys, json; print('epoch 1'); "
        "[print(json.dumps({{'step': n, 'eval_loss': 1 / n, 'note': 'x'}})) for n in (1, 2)]"
    )
    record = command(tmp_path, f'{COMMAND} "{code}" {{seed}} {{recipe}}', seed=7, recipe=[RULE])
    assert (record["status"], record["result"]["val_loss"]) == ("finished", 0.5)
    assert record["command"]["exit_code"] == 0
    assert record["command"]["words"][-2:] == ["7", str(tmp_path / "run" / "recipe.yaml")]
    assert record["command"]["last_lines"][0] == "epoch 1"
    assert record["command"]["seconds"] > 0
    assert record["checks"]["recipe_applied"] is None
    assert [row["val_loss"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1.0, 0.5]


def test_the_file_of_a_recipe_is_read_by_load_recipe(tmp_path):
    code = (
        "import sys, transformer_dropout as td; recipe = td.load_recipe(sys.argv[1]); "
        'print(\'{{\\"step\\": 1, \\"val_loss\\": %f}}\' % recipe.rules[0].rate(None, 0.0))'
    )
    record = command(tmp_path, f'{COMMAND} "{code}" {{recipe}}', recipe=[RULE])
    assert record["result"]["val_loss"] == pytest.approx(0.1)


def test_a_command_writes_rows_into_its_folder(tmp_path):
    code = (
        "import sys, json; file = open(sys.argv[1] + '/metrics.jsonl', 'w'); "
        "[file.write(json.dumps({{'step': n, 'val_f1': n / 4}}) + chr(10)) for n in (1, 2, 3)]; "
        "print(json.dumps({{'step': 9, 'val_f1': 9}}))"
    )
    record = command(tmp_path, f'{COMMAND} "{code}" {{out}}')
    assert record["result"]["val_f1"] == 0.75
    assert record["task"]["metrics"][0] == {"name": "f1", "unit": "", "better": "higher"}
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 3


def test_a_command_that_fails_leaves_its_code_and_its_last_words(tmp_path):
    with pytest.raises(InputError, match="ended with exit code 3: the disk is full"):
        command(tmp_path, f"{COMMAND} \"import sys; print('the disk is full'); sys.exit(3)\"")
    record = read_run(tmp_path / "run")
    assert record["status"] == "failed"
    assert (record["command"]["exit_code"], record["command"]["last_lines"]) == (3, ["the disk is full"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("/no/such/program {seed}", "cannot be started: no such file or directory"),
        (f"{COMMAND} pass", "Nothing to compare was reported"),
        (f"{COMMAND} \"print('{{{{}}}}')\"", "Nothing to compare was reported"),
    ],
)
def test_a_command_that_cannot_be_compared_is_told(tmp_path, text, words):
    with pytest.raises(InputError, match=words):
        command(tmp_path, text)


def test_a_row_that_is_none_names_its_line(tmp_path):
    code = "import sys; open(sys.argv[1] + '/metrics.jsonl', 'w').write('step 1 loss 2' + chr(10))"
    with pytest.raises(InputError, match=r"metrics\.jsonl:1 is no row of metrics; write"):
        command(tmp_path, f'{COMMAND} "{code}" {{out}}')


def test_a_killed_command_that_prints_its_rows_goes_on_with_them(tmp_path):
    code = (
        "import sys, os, json; again = os.path.exists(sys.argv[1] + '/once'); "
        "open(sys.argv[1] + '/once', 'w'); "
        "print(json.dumps({{'step': 2 if again else 1, 'val_loss': 1.0}}), flush=True); "
        "sys.exit(0 if again else 9)"
    )
    with pytest.raises(InputError, match="exit code 9"):
        command(tmp_path, f'{COMMAND} "{code}" {{out}}')
    record = command(tmp_path, f'{COMMAND} "{code}" {{out}}')
    assert record["status"] == "finished"
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["task"]["rows"] == "output"


def test_a_folder_that_another_process_is_in_is_refused(trial, tmp_path):
    (tmp_path / "run").mkdir()
    with (
        FileLock(tmp_path / "run" / ".run.lock", is_singleton=False),
        pytest.raises(InputError, match="Another process is running in"),
    ):
        trial("applies")
    assert trial("applies")["status"] == "finished"
