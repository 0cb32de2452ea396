"""Penalties, decay over time, zeros and smoothed targets of a run config: each has the effect it names."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F

from transformer_dropout.runs.loop import Training
from transformer_dropout.runs.optimizer import make_optimizer
from transformer_dropout.runs.processes import Processes
from transformer_dropout.runs.record import read_metrics, read_run
from transformer_dropout.runs.run import prepare, run
from transformer_dropout.runs.training_config import ElasticNetConfig, TrainingConfig
from transformer_dropout.runs.weight_penalties import WeightPenalties

ALONE = Processes(rank=0, size=1, device=torch.device("cpu"))
NET = ElasticNetConfig(weight=0.02, l1_ratio=0.25)
EVERYTHING = {
    "l1": {"linear": {"start": 0.0, "end": 1e-3}},
    "l2": 1e-3,
    "elastic_net": NET,
    "proximal_l1": "0,0.3@0.5,0.3",
    "weight_decay": "3,0@0.5,0",
    "label_smoothing": 0.1,
}


def training_of(config):
    return Training(config, prepare(config), ALONE)


def gradients(config):
    """Return the gradients that reach the optimizer in the first step, and the weights before it."""
    training, seen = training_of(config), {}
    weights = {name: p.detach().clone() for name, p in training.model.named_parameters()}

    def keep():
        seen.update({name: p.grad.clone() for name, p in training.model.named_parameters()})

    training.optimizer.step = keep
    training.advance()
    return seen, weights


def matrices(weights):
    return {name: weight for name, weight in weights.items() if weight.ndim == 2}


@pytest.mark.parametrize(
    ("key", "value", "pull"),
    [
        ("l1", 0.02, lambda w: 0.02 * w.sign()),
        ("l2", 0.02, lambda w: 0.02 * w),
        ("l1", "0.02,5", lambda w: 0.02 * w.sign()),
        ("elastic_net", NET, lambda w: 0.02 * (0.25 * w.sign() + 0.75 * w)),
    ],
)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_penalty_pulls_matrices_once_a_step_whatever_the_accumulation(tiny, key, value, pull, accumulation):
    plain, _ = gradients(tiny(clip=None, accumulation=accumulation))
    found, weights = gradients(tiny(clip=None, accumulation=accumulation, **{key: value}))
    for name, weight in weights.items():
        expected = plain[name] + pull(weight) if name in matrices(weights) else plain[name]
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-8)


def test_penalties_are_recorded_by_name_apart_from_the_loss(tmp_path, tiny, learned):
    record = run(tiny(recipe=learned, l1=1e-3, l2={"linear": {"start": 0.0, "end": 0.2}}), tmp_path / "run")
    first, *_, last = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert first["weight_penalties"]["l2"] == 0 < last["weight_penalties"]["l2"]
    training = training_of(tiny(recipe=learned))
    start = sum(weight.abs().sum().item() for weight in matrices(training.whole_state()).values())
    assert first["weight_penalties"]["l1"] == pytest.approx(1e-3 * start, rel=1e-5)
    layers = training.evaluate()["penalty"]
    assert first["penalty"] == pytest.approx(layers + first["weight_penalties"]["l1"], rel=1e-5)
    assert record["result"]["penalty"] == last["penalty"]
    assert record["config"]["training"]["l1"] == 1e-3
    # The losses are those of the model alone: at step 0 they are those of a run without penalties.
    assert first["val_loss"] == training.evaluate()["val_loss"]


@pytest.mark.parametrize(("key", "value"), [("l1", 0.01), ("l2", 1.0), ("elastic_net", NET)])
def test_a_penalty_leaves_smaller_weights(tmp_path, tiny, key, value):
    def size(config):
        training = training_of(config)
        while training.step < 10:
            training.advance()
        return sum(weight.square().sum() for weight in matrices(training.whole_state()).values())

    assert size(tiny(weight_decay=0.0, **{key: value})) < 0.9 * size(tiny(weight_decay=0.0))


def test_soft_thresholding_makes_exact_zeros_under_adam_and_a_penalty_none(tmp_path, tiny):
    zeros = {}
    for key in ("l1", "proximal_l1"):
        zeros[key] = run(tiny(**{key: 0.3}), tmp_path / key)["result"]["zeros"]
    assert zeros["l1"] == 0 < 0.1 < zeros["proximal_l1"] < 0.99
    rows = read_metrics(tmp_path / "proximal_l1" / "metrics.jsonl")
    assert rows[0]["zeros"] == 0


def test_the_weight_decay_follows_its_schedule(tmp_path, tiny):
    run(tiny(weight_decay="3,0@0.5,0"), tmp_path / "run")
    decays = [row["weight_decay"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    # Rows at steps 0, 10 and 20 tell the decay of steps 0, 9 and 19.
    assert decays == pytest.approx([3.0, 3.0 * (1 - 9 / 10), 0.0])

    def lost(decay):
        training = training_of(tiny(weight_decay=decay, lr=0.01, min_lr=0.01, warmup_steps=0))
        before = training.model.blocks[0].mlp.expand.weight.detach().clone()
        original = training.optimizer.step

        def without_gradient():
            for parameter in training.model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            original()

        training.optimizer.step = without_gradient
        for _ in range(20):
            training.advance()
        return (training.model.blocks[0].mlp.expand.weight / before).mean().item()

    assert lost(0.0) == pytest.approx(1.0)
    # The product of 1 - lr * decay over the steps.
    expected = 1.0
    for step in range(20):
        expected *= 1 - 0.01 * max(0.0, 3.0 * (1 - step / 10))
    assert lost("3,0@0.5,0") == pytest.approx(expected, rel=1e-4)


def test_label_smoothing_changes_the_training_loss_and_no_measured_one(tiny):
    training, plain = training_of(tiny(label_smoothing=0.2)), training_of(tiny())
    batch = training.task.batch(training.splits.train, range(4))
    logits, targets = training.model(batch.inputs["tokens"]).flatten(0, 1), batch.targets.flatten()
    expected = F.cross_entropy(logits, targets, label_smoothing=0.2)
    assert training.objective(training.model, batch).item() == pytest.approx(expected.item(), rel=1e-6)
    assert plain.objective(training.model, batch) == training.task.loss(training.model, batch)
    assert training.evaluate()["val_loss"] == plain.evaluate()["val_loss"]
    training.advance()
    plain.advance()
    assert training.loss != plain.loss


def test_a_run_with_everything_resumes_exactly(tmp_path, tiny, learned):
    config = tiny(recipe=learned, **EVERYTHING)
    run(config, tmp_path / "whole")
    for removed in ("step-00000020", None):
        # Killed after step 10, and behind the last evaluation.
        folder = tmp_path / str(removed)
        shutil.copytree(tmp_path / "whole", folder)
        if removed is not None:
            shutil.rmtree(folder / "checkpoints" / removed)
        (folder / "run.json").write_text(json.dumps(read_run(folder) | {"status": "running"}))
        ours, theirs = run(config, folder, resume=True)["result"], read_run(tmp_path / "whole")["result"]
        assert {**ours, "wall_seconds": 0} == {**theirs, "wall_seconds": 0}
        kept = ("val_loss", "penalty", "weight_penalties", "weight_decay", "zeros")
        rows = [
            [{key: row[key] for key in kept} for row in read_metrics(place / "metrics.jsonl")]
            for place in (folder, tmp_path / "whole")
        ]
        assert rows[0] == rows[1]
        model = "model/model.safetensors"
        assert (folder / model).read_bytes() == (tmp_path / "whole" / model).read_bytes()


def test_each_penalty_has_its_weight_over_time_and_a_pull_spares_what_is_new():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    config = TrainingConfig(
        l1="0,1",
        l2=0.2,
        elastic_net=NET,
        l2_sp="0,2",
        weight_decay="3,1",
        proximal_l1="0,4",
        min_lr=0,
        lr=0.1,
    )
    optimizer = make_optimizer(model, config)
    terms = WeightPenalties(model, optimizer, config, fresh=["1.weight", "1.bias"])
    assert list(terms.terms) == ["l1", "l2", "elastic_net", "l2_sp"]
    pull = terms.terms["l2_sp"]
    assert (pull.pulled, pull.new) == (["0.weight"], ["1.weight"])
    assert [term.weight for term in terms.terms.values()] == [0.0, 0.2, 0.02, 0.0]
    found = terms.metrics()
    assert (found["weight_decay"], found["zeros"], terms.strength) == (3.0, 0.0, 0.0)
    terms.set_progress(0.5)
    assert [term.weight for term in terms.terms.values()] == [0.5, 0.2, 0.02, 1.0]
    found = terms.metrics()
    assert found["weight_decay"] == 2.0 and list(found["weight_penalties"]) == list(terms.terms)
    assert terms.penalty().item() == pytest.approx(sum(found["weight_penalties"].values()), rel=1e-6)
    before = model[0].weight.detach().clone()
    terms.shrink()
    torch.testing.assert_close(model[0].weight, F.softshrink(before, 0.1 * 2.0))
    zeros = sum((layer.weight == 0).sum().item() for layer in model) / 10
    assert terms.metrics()["zeros"] == pytest.approx(zeros) and zeros > 0


def test_without_any_there_is_none():
    model = torch.nn.Linear(3, 2)
    config = TrainingConfig()
    terms = WeightPenalties(model, make_optimizer(model, config), config)
    assert terms.terms == {} and terms.metrics()["weight_penalties"] == {}
    before = model.weight.detach().clone()
    terms.shrink()
    assert model.weight.equal(before)
