"""When a run stops early, and what a checkpoint keeps of that."""

import json

from transformer_dropout.runs.early_stopping import EarlyStopping
from transformer_dropout.runs.training_config import EarlyStoppingConfig


def follow(losses, **config):
    stopping = EarlyStopping(EarlyStoppingConfig(**config) if config else None)
    for step, loss in enumerate(losses):
        stopping.update(step, loss)
    return stopping


def test_it_stops_after_so_many_evaluations_without_a_better_one():
    assert not follow([3.0, 2.0, 2.5], patience=2).should_stop
    stopped = follow([3.0, 2.0, 2.5, 2.0], patience=2)
    assert stopped.should_stop
    assert (stopped.best, stopped.best_step) == (2.0, 1)


def test_a_better_one_starts_the_count_again():
    assert not follow([3.0, 3.1, 2.9, 3.0], patience=2).should_stop


def test_too_small_a_gain_does_not_count():
    stopped = follow([3.0, 2.95, 2.91], patience=2, min_delta=0.1)
    assert stopped.should_stop


def test_the_weights_to_restore_are_those_of_the_lowest_loss_however_small_the_gain():
    assert follow([3.0, 2.95, 2.91], patience=2, min_delta=0.1).best_step == 2


def test_small_gains_add_up():
    assert follow([3.0, 2.95, 2.89], patience=2, min_delta=0.1).best_step == 2


def test_update_says_whether_it_is_the_best():
    stopping = EarlyStopping(None)
    assert [stopping.update(step, loss) for step, loss in enumerate([2.0, 2.0, 1.0])] == [True, False, True]


def test_without_a_config_it_never_stops_but_follows_the_best():
    stopping = follow([1.0, *[2.0] * 50])
    assert not stopping.should_stop
    assert stopping.best_step == 0
    assert follow([3.0, 2.9]).waited == 0


def test_its_state_survives_json():
    for losses in ([], [3.0, 2.0, 2.5]):
        before = follow(losses, patience=2)
        after = EarlyStopping(before.config)
        after.load_state(json.loads(json.dumps(before.state())))
        assert after == before
