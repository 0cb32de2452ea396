"""Runs that cannot fit are refused from their numbers."""

import time

import pytest

from transformer_dropout.errors import InputError
from transformer_dropout.runs import memory_limit
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
