"""Arms: what each one does to a model, and that nothing of the model's own is left beside it."""

from pathlib import Path

import pytest
import torch

from transformer_dropout.audit.tiny_models import tiny_model
from transformer_dropout.recipe import Recipe
from transformer_dropout.runs.record import read_metrics
from transformer_dropout.runs.run import run
from transformer_dropout.surgery.regularize import regularize_
from transformer_dropout.tasks.sentences import arms
from transformer_dropout.tasks.sentences.arms import default_arms, make_recipes
from transformer_dropout.yaml_file import read_yaml

EXPERIMENTS = Path(__file__).parents[3] / "experiments"
NAMES = ["none", "bert", "adaptive", "layerwise", "learned", "rdrop", "l2sp"]
TOKENS = torch.tensor([[1, 5, 6, 7], [1, 8, 9, 10]])


def rates(model, arm, progress=0.0):
    handle = regularize_(model, Recipe.from_data(make_recipes(model)[arm]))
    handle.set_progress(progress)
    return {name.rpartition("/")[2]: rate for name, rate in handle.metrics().items() if name.startswith("p/")}


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
def test_without_regularizer_training_is_not_random(family):
    model = tiny_model(family)
    assert list(make_recipes(model)) == NAMES
    regularize_(model, Recipe.from_data(make_recipes(model)["none"]))
    model.train()
    assert torch.equal(model(TOKENS).logits, model(TOKENS).logits)


def test_an_arm_replaces_the_rates_of_the_model():
    kinds = ("embedding", "attention_weights", "attention_output", "mlp_output", "classifier")
    model_rates = {"hidden_dropout_prob": 0.4, "attention_probs_dropout_prob": 0.4, "classifier_dropout": 0.4}

    def found(arm, progress=0.0):
        # The last block speaks for all.
        by_kind = rates(tiny_model("bert", **model_rates), arm, progress)
        return [pytest.approx(by_kind[kind]) if kind in by_kind else None for kind in kinds]

    assert found("none") == [0.0] * 5
    assert found("bert") == found("rdrop") == found("l2sp") == found("adaptive") == [0.1] * 5
    assert found("adaptive", 0.5) == [0.05] * 5
    assert found("layerwise") == [0.0, 0.12, 0.12, 0.12, 0.0]
    assert found("learned") == [0.0, 0.0, 0.0, None, 0.0]


def test_terms_stand_among_the_training_settings():
    made = {arm["name"]: arm for arm in default_arms(tiny_model("bert"), 64)}
    assert made["rdrop"]["recipe"] == made["bert"]["recipe"] == made["l2sp"]["recipe"]
    assert made["rdrop"]["training"]["rdrop"] == 1.0
    assert made["l2sp"]["training"]["l2_sp"] == 0.01
    assert not {"rdrop", "l2_sp"} & made["bert"]["training"].keys()


def test_few_sentences_get_more_passes_and_a_higher_rate(monkeypatch):
    few = arms.length(96)
    assert (few["steps"], few["eval_every"], few["lr"]["linear"]["start"]) == (24, 3, 5e-5)
    monkeypatch.setattr(arms, "FEW", 10)
    many = arms.length(96)
    assert (many["steps"], many["lr"]["linear"]["start"]) == (9, 3e-5)


def recipe_of(record, arm):
    return read_yaml(EXPERIMENTS / record / "runs" / arm / "seed-0" / "config.yaml").data["recipe"]


def test_the_cheapest_row_of_the_records_trains_again_on_a_small_model(changed, tmp_path):
    config = changed("none", steps=60, eval_every=60, lr=0.01)
    for record in ("fine_tuning/all", "fine_tuning/few", "sentences"):
        # Two of them are in an earlier form, of which recipes are as they were.
        assert config.recipe == recipe_of(record, "none")
    # Their encoder has no dropout of its own that a rule would have to silence.
    assert recipe_of("claims/bert_rates", "hidden-0-attention-0") == []
    assert recipe_of("tuned/sentences", "none") == []
    run(config, tmp_path / "run")
    first, last = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert last["train_loss"] < 0.8 * first["train_loss"]
