"""The examples of each forward: each once an epoch, shared among processes, augmented by the step alone."""

from types import SimpleNamespace

import numpy as np
import pytest

from transformer_dropout.runs.examples import Examples
from transformer_dropout.runs.order import alternating_order, epoch_order
from transformer_dropout.runs.task import Splits
from transformer_dropout.runs.training_config import SelfTunedConfig, TrainingConfig

SPLITS = Splits(train=list(range(100, 116)), validation=[1])


class Numbers:
    """A task whose batches are lists of numbers."""

    def batch(self, split, indices):
        return [split[index] for index in indices]


class Backwards(Numbers):
    """A task with an order of its own that notes what it is asked for."""

    def __init__(self):
        self.asked = []

    def order(self, split, together, seed, epoch):
        self.asked.append((len(split), together, seed, epoch))
        return np.arange(len(split))[::-1]


class Augmented(Numbers):
    """A task that returns what it augments with."""

    def augment(self, data, batch, generator):
        return data, batch, generator.initial_seed()


def examples(task=None, rank=0, size=1, splits=SPLITS, seed=7, **training):
    config = SimpleNamespace(
        training=TrainingConfig(**{"batch": 4, "accumulation": 2} | training),
        seed=seed,
        data="data",
        find_task=lambda: task or Numbers(),
    )
    return Examples(config, splits, SimpleNamespace(rank=rank, size=size))


def seen(made, steps, draw="batch"):
    return [
        number for step in range(steps) for part in range(2) for number in getattr(made, draw)(step, part)
    ]


def test_an_epoch_over_steps_and_their_parts_holds_each_example_once():
    made = examples()
    assert made.held_out is None and made.splits is SPLITS
    assert seen(made, 2) == [100 + n for n in epoch_order(16, 7, 0)]
    assert seen(made, 4)[16:] == [100 + n for n in epoch_order(16, 7, 1)]


def test_processes_take_every_other_example():
    alone, two = examples(), [examples(rank=rank, size=2) for rank in range(2)]
    for step, part in ((0, 0), (1, 1)):
        batch = alone.batch(step, part)
        assert [made.batch(step, part) for made in two] == [batch[::2], batch[1::2]]


def test_a_batch_is_augmented_by_step_part_process_and_seed():
    made = examples(Augmented())
    data, batch, drawn = made.batch(1, 1)
    assert (data, batch) == ("data", examples().batch(1, 1))
    states = [int(np.random.SeedSequence((seed, 3, 0)).generate_state(1, np.uint64)[0]) for seed in range(9)]
    assert min(states) < 2**63 < max(states)
    for seed, state in enumerate(states):
        assert examples(Augmented(), seed=seed).batch(1, 1)[2] == state % 2**63
    others = [made.batch(*at) for at in ((1, 0), (0, 1), (2, 1))]
    others += [examples(Augmented(), **facts).batch(1, 1) for facts in ({"seed": 8}, {"rank": 1, "size": 2})]
    assert len({drawn, *(other[2] for other in others)}) == 6


@pytest.mark.parametrize("keys", [{"held_out": 0.25}, {"self_tuned": SelfTunedConfig(share=0.25)}])
def test_a_held_out_part_is_never_trained_on(keys):
    made = examples(**keys)
    trained, held = set(seen(made, 9)), seen(made, 9, "held_out_batch")
    assert len(trained) == 12 and trained | set(held) == set(SPLITS.train) and not trained & set(held)
    # Each of its four once in every forward of four.
    assert all(len(set(held[n : n + 4])) == 4 for n in range(0, len(held), 4))
    assert held[:8] == [
        made.held_out.split[made.held_out.indices[n]] for e in (0, 1) for n in epoch_order(4, 7, e)
    ]
    assert examples(seed=8, **keys).held_out.indices.tolist() != made.held_out.indices.tolist()


def test_cross_fitted_gates_see_what_the_weights_see_from_halves_in_turn():
    made = examples(splits=Splits(train=list(range(100, 117)), validation=[1]), cross_fit=True)
    assert seen(made, 2) == [100 + n for n in alternating_order(16, 7, 0)]
    assert seen(made, 2, "held_out_batch") == seen(made, 2)
    assert made.held_out is None


def test_a_task_may_have_an_order_of_its_own():
    task = Backwards()
    made = examples(task)
    assert seen(made, 2) == SPLITS.train[::-1]
    assert task.asked == [(16, 8, 7, 0)]


@pytest.mark.parametrize("keys", [{"folds": 2}, {"held_out": 0.25}, {"cross_fit": True}])
def test_but_not_of_a_part_of_its_examples(keys):
    task = Backwards()
    seen(examples(task, **keys), 2)
    assert task.asked == []


def test_a_fold_is_validated_on():
    made = examples(folds=4, fold=1)
    assert len(made.splits.train) == 12 and len(made.splits.validation) == 4
    assert set(seen(made, 3)) == {SPLITS.train[n] for n in made.splits.train.indices}
