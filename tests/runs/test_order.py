import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_dropout.runs.order import batch_indices, epoch_order, fixed_probe

_COUNTS, _SEEDS = st.integers(1, 60), st.integers(0, 2**40)


@settings(deadline=None)
@given(_COUNTS, _SEEDS, st.integers(0, 1000))
def test_an_epoch_is_a_permutation(count, seed, epoch):
    assert sorted(epoch_order(count, seed, epoch).tolist()) == list(range(count))


def test_epochs_and_seeds_differ():
    orders = {tuple(epoch_order(50, seed, epoch).tolist()) for seed in range(4) for epoch in range(5)}
    assert len(orders) == 20
    assert tuple(range(50)) not in orders


def test_the_order_is_pinned_so_that_old_runs_resume():
    assert epoch_order(8, 3, 1).tolist() == [0, 6, 7, 5, 2, 1, 4, 3]


def test_a_cached_order_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        epoch_order(8, 0, 0)[0] = 1


@settings(deadline=None)
@given(_COUNTS, st.integers(1, 25), _SEEDS)
def test_batches_are_the_stream_of_epochs_cut_in_order(count, batch, seed):
    steps = 3 * count // batch + 2
    stream = np.concatenate([batch_indices(count, batch, step, seed) for step in range(steps)])
    for epoch in range(len(stream) // count):
        inside = stream[epoch * count : (epoch + 1) * count]
        assert inside.tolist() == epoch_order(count, seed, epoch).tolist()
        assert sorted(inside.tolist()) == list(range(count))


@settings(deadline=None)
@given(_COUNTS, st.integers(1, 150), _SEEDS, st.integers(0, 10**6))
def test_any_step_is_computed_from_nothing(count, batch, seed, step):
    epoch_order.cache_clear()
    fresh = batch_indices(count, batch, step, seed)
    batch_indices(count, batch, max(step - 1, 0), seed)
    assert fresh.shape == (batch,)
    assert batch_indices(count, batch, step, seed).tolist() == fresh.tolist()


@settings(deadline=None)
@given(_COUNTS, st.integers(1, 6), st.integers(1, 4), _SEEDS, st.integers(0, 100))
def test_ranks_share_a_batch_without_overlap(count, each, ranks, seed, step):
    whole = batch_indices(count, each * ranks, step, seed)
    steps_of_one = [batch_indices(count, each, step * ranks + rank, seed) for rank in range(ranks)]
    assert np.concatenate(steps_of_one).tolist() == whole.tolist()


def test_a_step_costs_microseconds_within_an_epoch():
    batch_indices(200_000, 32, 0, 1)
    start = time.perf_counter()
    for step in range(1000):
        batch_indices(200_000, 32, step, 1)
    assert time.perf_counter() - start < 1.0  # sorting anew each step would take over 10 s


@settings(deadline=None)
@given(_COUNTS, st.integers(1, 80), _SEEDS)
def test_a_probe_is_sorted_and_even(count, wanted, seed):
    probe = fixed_probe(count, wanted, seed)
    assert probe.dtype == np.int64
    assert len(probe) == min(count, wanted) and probe.dtype == np.int64
    assert probe.tolist() == sorted(set(probe.tolist()))
    assert probe[0] >= 0 and probe[-1] < count
    gaps = np.diff([*probe, probe[0] + count])
    assert gaps.max() - gaps.min() <= 1
    assert probe.tolist() == fixed_probe(count, wanted, seed).tolist()


def test_probes_of_other_seeds_shift():
    assert len({tuple(fixed_probe(1000, 10, seed).tolist()) for seed in range(10)}) > 5


def test_an_order_of_the_tasks_own_is_followed_across_epochs():
    def backwards(examples, seed, epoch):
        return np.arange(examples)[::-1] + 100 * epoch

    assert batch_indices(3, 2, 1, 0, backwards).tolist() == [0, 102]
