"""The clean loss, its repeatability, and what the masks keep."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from transformer_dropout.layers import Dropout
from transformer_dropout.runs import loop
from transformer_dropout.runs.cost import sketch_of_splits
from transformer_dropout.runs.evaluate import (
    EvaluationError,
    Evaluator,
    collapsed_masks,
    evaluating,
    fixed_randomness,
    mask_statistics,
)
from transformer_dropout.runs.folds import part_of
from transformer_dropout.runs.loop import Training
from transformer_dropout.runs.processes import Processes
from transformer_dropout.runs.run import prepare
from transformer_dropout.tasks.language import Language
from transformer_dropout.tasks.language.data import Windows

ALONE = Processes(rank=0, size=1, device=torch.device("cpu"))


class LeftOnDropout(Dropout):
    """The mistake that biased a published table: dropout that evaluation does not turn off."""

    def train(self, mode=True):
        return super().train(True)


@pytest.fixture
def windows(tiny):
    return prepare(tiny()).train


def built(config):
    return loop.build_model(config, sketch_of_splits(config))


def evaluator(model):
    return Evaluator(task=Language(), model=model, processes=ALONE, autocast=False)


def loss(model, windows, count):
    return evaluator(model).scores(windows, np.arange(count))["loss"]


def statistics_of(model, regularization, windows, count):
    batch = Language().batch(windows, np.arange(count))
    return mask_statistics(Language(), model, regularization, batch, seed=0)


@pytest.fixture
def learned_model(tiny, learned):
    return built(tiny(recipe=learned))


def test_the_mean_over_a_split_equals_a_naive_loop(windows, learned_model):
    model, _ = learned_model
    indices = np.arange(len(windows))
    assert len(windows) % 256  # the last forward is smaller than the others
    model.eval()
    with torch.no_grad():
        losses = [model(*windows.inputs_and_targets([index])).item() for index in indices]
    assert loss(model, windows, len(windows)) == pytest.approx(np.mean(losses), abs=1e-6)


def test_the_mode_of_the_model_is_put_back(learned_model):
    model, _ = learned_model
    for mode in (True, False):
        model.train(mode)
        with pytest.raises(ZeroDivisionError), evaluating(model):
            assert not model.training
            assert not torch.is_grad_enabled()
            raise ZeroDivisionError
        assert model.training is mode
        assert torch.is_grad_enabled()


def test_two_passes_of_a_clean_model_are_bit_equal(windows, learned_model):
    model, regularization = learned_model
    scores, equal = evaluator(model).repeatable(regularization, windows, np.arange(40))
    assert equal
    assert scores == {"loss": loss(model, windows, 40)}


@pytest.mark.parametrize("place", ["attention_weights", "mlp_output"])
def test_dropout_left_on_in_evaluation_is_caught(tiny, windows, place):
    recipe = [{"select": place, "layer": "Dropout", "p": 0.5}]
    model, regularization = built(tiny(recipe=recipe))
    regularization.placed[0].layer.__class__ = LeftOnDropout
    with pytest.raises(EvaluationError, match="Two evaluations of the same weights gave"):
        evaluator(model).repeatable(regularization, windows, np.arange(40))


def test_masks_sampled_on_purpose_repeat_under_one_seed_and_the_record_says_so(tiny, learned, windows):
    recipe = [learned[0] | {"eval_mask": "sample"}]
    model, regularization = built(tiny(recipe=recipe))
    first = evaluator(model).repeatable(regularization, windows, np.arange(40))
    assert first == evaluator(model).repeatable(regularization, windows, np.arange(40))
    assert first[1] is False
    assert first[0]["loss"] != loss(model, windows, 40)


def test_fixed_randomness_repeats_and_moves_nothing_outside():
    before = torch.get_rng_state()
    with fixed_randomness(3, ALONE.device):
        first = torch.rand(4)
    with fixed_randomness(3, ALONE.device):
        assert torch.rand(4).equal(first)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("eval_mask", ["threshold", "sample"])
def test_an_evaluation_moves_no_random_state_and_no_weight(tiny, learned, eval_mask):
    config = tiny(recipe=[learned[0] | {"eval_mask": eval_mask}, learned[1]])
    training = Training(config, prepare(config), ALONE)
    training.advance()
    random, weights = torch.get_rng_state(), training.whole_state()
    once, twice = training.evaluate(), training.evaluate(twice=True)
    assert twice["evaluation_bit_equal"] is (eval_mask == "threshold")
    assert once["val_loss"] == twice["val_loss"]
    assert torch.get_rng_state().equal(random)
    assert all(tensor.equal(weights[name]) for name, tensor in training.whole_state().items())


def test_mask_statistics_are_the_fractions_the_layer_keeps(windows, learned_model):
    model, regularization = learned_model
    layer = regularization.placed[1].layer
    layer.shift.data.fill_(1.0)
    layer.qkv.weight.data.zero_()  # now M = 0.5 cos(1) + 0.5 everywhere
    keep = 0.5 * np.cos(1.0) + 0.5
    statistics = statistics_of(model, regularization, windows, 64)
    assert statistics["keep"] == pytest.approx(keep, abs=0.01)
    assert statistics["keep_eval"] == 1.0
    assert statistics["penalty"] == pytest.approx(0.1 * keep**2 / 2, rel=1e-5)
    assert list(statistics["keep_by_site"].values()) == [statistics["keep"]]
    assert next(iter(statistics["keep_by_site"])).startswith("blocks.0.mlp")
    # Masks that are computed have no rate.
    assert statistics["rate_by_site"] == {"blocks.0.attention/attention_output": 0.1}
    assert statistics == statistics_of(model, regularization, windows, 64)


def test_a_recipe_without_masks_has_no_fractions(tiny, windows):
    model, regularization = built(tiny())
    statistics = statistics_of(model, regularization, windows, 4)
    assert (statistics["keep"], statistics["keep_eval"], statistics["penalty"]) == (None, None, 0.0)
    assert collapsed_masks(statistics) == []


def test_rates_are_told_without_a_forward(tiny, windows):
    model, regularization = built(tiny(recipe=[{"select": "mlp_output", "layer": "Dropout", "p": 0.2}]))
    model.forward = None  # would fail
    rates = statistics_of(model, regularization, windows, 4)["rate_by_site"]
    assert rates == {f"blocks.{block}.mlp/mlp_output": 0.2 for block in range(len(model.blocks))}


def test_a_penalty_is_measured_of_layers_that_have_a_rate_too(tiny, windows):
    recipe = [{"select": "mlp_output", "layer": "ConcreteDropout", "weight": 0.1}]
    statistics = statistics_of(*built(tiny(recipe=recipe)), windows, 4)
    assert statistics["penalty"] != 0.0 and statistics["keep"] is None and statistics["rate_by_site"]


def test_masks_of_all_ones_or_all_zeros_raise_an_alarm():
    by_site = {"blocks.0.mlp": 0.5, "blocks.1.mlp": 0.995, "blocks.2.mlp": 0.001}
    alarms = collapsed_masks({"keep_by_site": by_site, "keep_eval_by_site": {"blocks.0.mlp": 1.0}})
    assert alarms == [
        "Masks in training are all ones: nothing is dropped (at 1 of 3: blocks.1.mlp).",
        "Masks in training are all zeros: the place is cut off (at 1 of 3: blocks.2.mlp).",
        "Masks as evaluated are all ones: nothing is dropped (at 1 of 1: blocks.0.mlp).",
    ]


def test_healthy_masks_raise_none():
    by_site = {"blocks.0.mlp": 0.02, "blocks.1.mlp": 0.98, "blocks.2.mlp": 0.99, "blocks.3.mlp": 0.01}
    assert collapsed_masks({"keep_by_site": by_site, "keep_eval_by_site": by_site}) == []


class InThrees(Language):
    """Evaluates three windows at once, and makes a number of its means."""

    def __init__(self):
        self.seen = []

    def evaluated_together(self, split):
        return 3 if isinstance(split, Windows) else 5

    def batch(self, split, indices):
        self.seen.append(list(indices))
        return super().batch(split, indices)

    def summarize(self, means):
        return {"perplexity": np.exp(means["loss"])}


def test_a_task_says_how_many_examples_go_together_and_what_its_means_come_to(windows, learned_model):
    task = InThrees()
    scores = replace(evaluator(learned_model[0]), task=task).scores(windows, np.arange(8))
    assert task.seen == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert scores == {"perplexity": pytest.approx(np.exp(loss(learned_model[0], windows, 8)), rel=1e-6)}
    task.seen.clear()
    replace(evaluator(learned_model[0]), task=task).scores(part_of(windows, np.arange(20, 30)), np.arange(4))
    assert task.seen == [[20, 21, 22], [23]]


def test_a_process_counts_its_own_batches_and_no_repeated_one(windows, learned_model):
    task = InThrees()
    second = SimpleNamespace(
        rank=1, size=2, device=torch.device("cpu"), gather=lambda names: [names], sum=lambda totals: totals
    )
    theirs = Evaluator(task=task, model=learned_model[0], processes=second, autocast=False)
    assert theirs.scores(windows, np.arange(8)) == replace(theirs, processes=ALONE).scores(
        windows, np.arange(3, 6)
    )
    assert task.seen[:2] == [[3, 4, 5], [6, 7]]
