"""``dropout tune`` as a user types it."""

import pytest
import yaml

from transformer_dropout.compare.tuning.study import Budget, open_study

RULE = {"select": "attention_output", "layer": "Dropout", "p": 0.1}
FUNCTION = """
def train(trial):
    trial.report(step=1, val_loss=(trial.settings["x"] - 0.3) ** 2)
"""


@pytest.mark.slow
def test_two_processes_share_one_search(tmp_path, start):
    (tmp_path / "mine.py").write_text(FUNCTION)
    (tmp_path / "arms.yaml").write_text(yaml.safe_dump([{"name": "mine"}]))
    (tmp_path / "space.yaml").write_text("settings: {x: {low: 0.0, high: 1.0}}")
    search = ("tune", "mine.py:train", "--arms", "arms.yaml", "--space", "space.yaml", "--trials", "6")
    processes = [start(*search, "--jobs", "1", "--out", "out") for _ in range(2)]
    for process in processes:
        out, err = process.communicate(timeout=200)
        assert (process.returncode, err) == (0, ""), out + err
    trials = open_study(tmp_path / "out", "mine", Budget(trials=6)).get_trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 6
    assert len({trial.params["x"] for trial in trials}) == 6
    assert len({trial.user_attrs["process"]["pid"] for trial in trials}) == 2
