"""The training loop itself, a step at a time and without files: accumulation, checkpoints, processes."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from transformer_dropout.runs.loop import NonFiniteLoss, Training
from transformer_dropout.runs.order import fixed_probe
from transformer_dropout.runs.processes import Processes
from transformer_dropout.runs.run import prepare
from transformer_dropout.runs.task import ACCURACY
from transformer_dropout.runs.training_config import EarlyStoppingConfig, SelfTunedConfig

# A gate that draws nothing, with a penalty that weighs as much as the loss.
GATE = {"select": "mlp_output", "layer": "LearnedSigmoidDropout", "heads": 2, "shift": 1.0, "weight": 5.0}


def training_of(config, rank=0):
    processes = Processes(rank=rank, size=1, device=torch.device("cpu"))
    return Training(config, prepare(config), processes)


def gradients_of_steps(config, steps):
    """Return every gradient that the optimizer gets in some steps."""
    training, seen = training_of(config), []
    training.optimizer.register_step_pre_hook(
        lambda *_: seen.append([p.grad.clone() for p in training.model.parameters() if p.grad is not None])
    )
    for _ in range(steps):
        training.advance()
    return seen


def test_a_step_has_the_gradients_of_all_its_examples_at_every_accumulation(tiny):
    whole, parts = (
        gradients_of_steps(tiny(recipe=[GATE], batch=batch, accumulation=8 // batch, clip=None), steps=2)
        for batch in (8, 2)
    )
    for one, other in zip(whole, parts, strict=True):
        for gradient, expected in zip(other, one, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


def test_each_example_of_an_epoch_is_seen_once_under_accumulation(tiny):
    training = training_of(tiny(batch=3, accumulation=2))
    train = training.splits.train
    steps, seen = len(train) // 6, Counter()
    for training.step in range(steps):
        for part in range(2):
            seen.update(map(tuple, training.training_batch(part).targets.tolist()))
    # Some windows of the text are alike.
    there = Counter(map(tuple, train.inputs_and_targets(range(len(train)))[1].tolist()))
    assert seen.total() == 6 * steps > 30 and seen <= there


def test_the_loss_of_a_step_is_the_mean_over_its_parts_and_holds_no_penalty(tiny):
    losses = []
    for weight in (0.0, 100.0):
        training = training_of(tiny(recipe=[GATE | {"weight": weight}], accumulation=2))
        training.advance()
        losses.append(training.loss.item())
    assert losses[0] == losses[1] == pytest.approx(5.5, abs=0.3)  # log 256, a uniform guess


def test_what_a_step_leaves_behind(tiny):
    training = training_of(tiny(accumulation=3))
    for steps in (1, 2):
        training.advance()
        assert all(parameter.grad is None for parameter in training.model.parameters())
        assert (training.step, training.items) == (steps, steps * 4 * 3 * 16)


def test_a_checkpoint_brings_back_what_was_counted(tiny):
    config = tiny(early_stopping=EarlyStoppingConfig(patience=3))
    before = training_of(config)
    before.step, before.items, before.seconds_before = 7, 99, 1000.0
    for step, loss in enumerate([3.0, 2.0, 2.5]):
        before.early_stopping.update(step, loss)
    after = training_of(config)
    after.load(before.checkpoint())
    assert (after.step, after.items) == (7, 99)
    assert after.early_stopping.state() == before.early_stopping.state()
    assert after.early_stopping.waited == 1
    assert 1000 < after.seconds < 1100


def test_each_process_draws_masks_of_its_own(tiny, learned):
    config = tiny(recipe=learned)
    drawn = []
    for rank in (0, 1, 0):
        training_of(config, rank)
        drawn.append(torch.rand(4))
    assert drawn[0].equal(drawn[2]) and not drawn[0].equal(drawn[1])
    training_of(replace(config, seed=1))
    assert not drawn[0].equal(torch.rand(4))


def test_an_evaluation_names_what_it_measures(tiny, learned):
    training = training_of(tiny(recipe=learned, steps=4, probe_windows=5, eval_windows=3, warmup_steps=0))
    assert len(training.probe) == 5 and len(training.validation_probe) == 3
    first = training.evaluate()
    assert first["step_seconds"] is None and first["evaluation_bit_equal"] is None
    for _ in range(2):
        training.advance()
    row = training.evaluate(twice=True)
    assert row.keys() == first.keys() and row["evaluation_bit_equal"] is True
    assert row["step"] == 2 and row["step_seconds"] > 0 and row["peak_memory_bytes"] > 10**6
    assert first["lr"] == pytest.approx(1e-2) and row["lr"] < first["lr"]
    for use, split, probe in (
        ("train", "train", training.probe),
        ("val", "validation", training.validation_probe),
    ):
        expected = training.evaluator.scores(getattr(training.splits, split), probe)
        assert {f"{use}_{name}": value for name, value in expected.items()}.items() <= row.items()
    assert 0 < row["keep"] < 1 and row["penalty"] > 0
    assert training.evaluate()["step_seconds"] is None


def test_the_deciding_metric_is_turned_around_where_more_is_better(tiny):
    training = training_of(tiny())
    assert training.deciding({"val_loss": 2.0}) == 2.0
    training.task = SimpleNamespace(metrics=(ACCURACY,))
    assert training.deciding({"val_accuracy": 0.7}) == -0.7


def test_a_checkpoint_names_its_run_and_divergence_its_step(tiny):
    config = tiny()
    assert training_of(config).checkpoint().run == config.fingerprint()
    assert NonFiniteLoss(7).step == 7


def test_the_test_split_is_looked_at_whole_where_there_is_one(tiny):
    training = training_of(tiny(eval_windows=3))
    assert training.splits.test is None and training.test_scores() == {}
    split = training.splits.validation
    training.splits = replace(training.splits, test=split)
    assert len(split) > 3
    expected = training.evaluator.scores(split, np.arange(len(split)))
    assert training.test_scores() == {"test_loss": expected["loss"]}


def test_what_no_pre_training_made_are_the_layers_and_what_the_task_says(tiny):
    training = training_of(tiny(recipe=[GATE]))
    names = [name for name, _ in training.model.named_parameters()]
    layers = {name for name in names if ".mlp_output_dropout." in name}
    assert training.fresh() == layers != set()
    training.task = SimpleNamespace(fresh=lambda model: ["norm.weight"])
    assert training.fresh() == layers | {"norm.weight"}


def test_the_average_comes_back_from_a_checkpoint_as_it_was(tiny):
    config, found = tiny(ema=0.5), []
    before, after = training_of(config), training_of(config)
    for _ in range(2):
        before.advance()
    after.load(before.checkpoint())
    for training in (before, after):
        with training.evaluated_weights():
            found.append(training.whole_state()["blocks.0.mlp.expand.weight"].clone())
    assert found[0].equal(found[1])
    assert not found[0].equal(before.whole_state()["blocks.0.mlp.expand.weight"])
    assert training_of(tiny()).average is None


def test_what_a_run_begins_with(tiny):
    training = training_of(tiny(probe_windows=5, eval_windows=3))
    splits = training.splits
    assert training.probe.tolist() == fixed_probe(len(splits.train), 5, 0).tolist()
    assert training.validation_probe.tolist() == fixed_probe(len(splits.validation), 3, 0).tolist()
    assert (training.step, training.items, training.seconds_before, training.autocast) == (0, 0, 0.0, False)
    assert training_of(tiny(precision="bfloat16")).autocast
    assert len(training_of(tiny()).validation_probe) == len(splits.validation)


def test_rates_are_tuned_on_a_part_that_is_held_out(tiny):
    rule = {"select": "mlp_output", "layer": "Dropout", "p": 0.3}
    training = training_of(tiny(recipe=[rule], self_tuned=SelfTunedConfig(share=0.2, every=1)))
    layer = training.regularization.placed[0].layer
    rates = []
    for _ in range(3):
        training.advance()
        rates.append(layer.p)
    assert len(set(rates)) == 3 and all(0 < rate < 1 for rate in rates)
    assert len(training.splits.train) + len(training.examples.held_out) == len(prepare(tiny()).train)
