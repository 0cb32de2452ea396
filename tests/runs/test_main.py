"""``python -m transformer_dropout.runs`` and ``.trials``: the folder of a run, started or continued."""

import runpy

import pytest

from transformer_dropout.runs import trials, worker
from transformer_dropout.runs.listener import Listener
from transformer_dropout.runs.trial_config import TrialConfig, load_trial_config

# Other tests may have imported the modules that are run here.
pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")


@pytest.fixture
def begun(monkeypatch):
    """Run a module as Python does with ``-m``, but for its work; return what it hands over."""
    given = []
    monkeypatch.setattr(worker, "work", lambda *words: given.append(words))

    def begun(module):
        given.clear()
        runpy.run_module(module, run_name="__main__", alter_sys=False)
        (words,) = given
        return words

    return begun


def test_a_run_is_started_and_continued(begun, tmp_path, tiny, monkeypatch):
    seen, listener = [], Listener()
    monkeypatch.setattr(
        "transformer_dropout.runs.run.run", lambda *given, **words: seen.append((given, words))
    )
    module, run_folder = begun("transformer_dropout.runs")
    assert module == "transformer_dropout.runs"
    config = tiny(steps=2, eval_every=1)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    run_folder(tmp_path, listener)
    assert seen == [((config, tmp_path), {"resume": True, "listener": listener})]


def test_a_trial_is_started_and_continued(begun, tmp_path, monkeypatch):
    module, run_folder = begun("transformer_dropout.runs.trials")
    assert module == "transformer_dropout.runs.trials"
    seen, listener = [], Listener()
    monkeypatch.setattr(trials, "run_trial", lambda *given: seen.append(given))
    config = TrialConfig(name="mine", command="true {seed}")
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    trials.run_folder(tmp_path, listener)
    assert seen == [(load_trial_config(tmp_path / "config.yaml"), tmp_path, listener)]
    assert run_folder.__name__ == "run_folder"
