"""Runs that cannot fit are refused from their numbers."""

import time

import pytest

from transformer_dropout.errors import InputError
from transformer_dropout.runs import memory_limit
from transformer_dropout.runs.cost import count_cost, sketch_of_splits
from transformer_dropout.runs.memory_limit import fitting_cost, refuse_what_does_not_fit
from transformer_dropout.runs.run import check_config


def test_a_batch_that_does_not_fit_is_refused_with_one_that_does(tiny, monkeypatch):
    monkeypatch.setattr(memory_limit, "memory_bytes", lambda: 2**30)
    start = time.perf_counter()
    with pytest.raises(InputError, match=r"use --set training.batch=\d+ or less") as refused:
        check_config(tiny(batch=2_000_000))
    assert time.perf_counter() - start < 5
    fits = int(str(refused.value).split("training.batch=")[1].split(" ")[0])
    check_config(tiny(batch=fits))
    with pytest.raises(InputError):
        check_config(tiny(batch=2 * fits))


def test_a_model_that_does_not_fit_is_refused(tiny, monkeypatch):
    monkeypatch.setattr(memory_limit, "memory_bytes", lambda: 2**16)
    with pytest.raises(InputError, match="The model does not fit into memory"):
        check_config(tiny())
    monkeypatch.setattr(memory_limit, "memory_bytes", lambda: 150_000)
    with pytest.raises(InputError, match="does not fit into memory"):
        check_config(tiny(batch=1))


def test_the_numbers_of_a_refusal_are_those_of_the_estimate(tiny, monkeypatch):
    monkeypatch.setattr(memory_limit, "memory_bytes", lambda: 6 * 2**30)
    # 1 GiB of weights with gradients and moments, and 1 GiB an example.
    with pytest.raises(InputError) as refused:
        refuse_what_does_not_fit(tiny(batch=8), parameters=2**26, needed=9 * 2**30)
    assert "batch 8 does not fit" in str(refused.value) and "training.batch=5 or less" in str(refused.value)
    with pytest.raises(InputError, match="9 GiB are needed by this estimate, and 6 GiB are there"):
        refuse_what_does_not_fit(tiny(), parameters=2**30, needed=9 * 2**30)


def test_a_cost_is_counted_of_what_fits_alone(tiny, monkeypatch):
    config = tiny()
    splits = sketch_of_splits(config)
    assert fitting_cost(config, splits) == count_cost(config, splits)
    for there in (2**16, 150_000):
        monkeypatch.setattr(memory_limit, "memory_bytes", lambda there=there: there)
        with pytest.raises(InputError, match="does not fit into memory"):
            fitting_cost(tiny(batch=1) if there > 2**16 else config, splits)
