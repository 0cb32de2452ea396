"""Arms: what each one does to a model, and that nothing of the model's own is left beside it."""

import pytest
import torch

from transformer_dropout.audit.tiny_models import tiny_model
from transformer_dropout.errors import InputError
from transformer_dropout.surgery.regularize import regularize_
from transformer_dropout.tasks.sentences.arms import make_arms, parts_of
from transformer_dropout.tasks.sentences.objective import Objective
from transformer_dropout.tasks.sentences.pretrained import Classifier, load_classifier

NAMES = ["none", "bert", "adaptive", "layerwise", "learned", "rdrop", "l2sp"]
TOKENS = torch.tensor([[1, 5, 6, 7], [1, 8, 9, 10]])


def rates(model, arm, progress=0.0):
    recipe, _ = parts_of(make_arms(model)[arm])
    handle = regularize_(model, recipe)
    handle.set_progress(progress)
    return {name.rpartition("/")[2]: rate for name, rate in handle.metrics().items() if name.startswith("p/")}


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
def test_without_regularizer_training_is_not_random(family):
    model = tiny_model(family)
    assert list(make_arms(model)) == NAMES
    regularize_(model, parts_of(make_arms(model)["none"])[0])
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


def test_terms_stand_beside_the_rules():
    arms = make_arms(tiny_model("bert"))
    assert parts_of(arms["rdrop"]) == (parts_of(arms["bert"])[0], {"RDrop": 1.0})
    assert parts_of(arms["l2sp"]) == (parts_of(arms["bert"])[0], {"L2SP": 0.01})
    with pytest.raises(InputError, match="Did you mean 'RDrop'"):
        parts_of([{"term": "rDrop", "weight": 1}])
    with pytest.raises(InputError, match="weight of L2SP is None"):
        parts_of([{"term": "L2SP"}])


def test_the_pull_is_to_the_pretrained_weights_and_leaves_the_head_to_zero(model_dir):
    classifier = load_classifier(model_dir, 2, seed=0)
    assert classifier.new == ("classifier.bias", "classifier.weight")
    objective = Objective(classifier, {"L2SP": 0.01})
    assert objective.pull.new == ["classifier.weight"]
    handle = regularize_(classifier.model, parts_of([])[0])
    head = classifier.model.classifier.weight
    assert objective.penalty(handle).item() == pytest.approx(0.01 * head.square().sum().item() / 2)
    weight = classifier.model.bert.encoder.layer[0].output.dense.weight
    with torch.no_grad():
        weight += 1.0
        head.zero_()
    assert objective.penalty(handle).item() == pytest.approx(0.01 * weight.numel() / 2, rel=1e-4)


def test_without_noise_rdrop_is_the_cross_entropy():
    model = tiny_model("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    classifier, labels = Classifier(model=model, new=()), torch.tensor([0, 1])
    inputs = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}
    losses = [Objective(classifier, terms).loss(inputs, labels) for terms in ({}, {"RDrop": 3.0})]
    torch.testing.assert_close(*losses)
    model = tiny_model("bert", hidden_dropout_prob=0.5).train()
    weak, strong = (Objective(Classifier(model=model, new=()), {"RDrop": w}) for w in (0.0, 100.0))
    found = []
    for objective in (weak, strong):
        torch.manual_seed(0)
        found.append(objective.loss(inputs, labels).item())
    assert found[1] > found[0]
