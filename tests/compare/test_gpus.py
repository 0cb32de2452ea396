"""A run takes GPUs that are free on its machine, and gives them back."""

import tempfile
import threading

import pytest
import torch

from transformer_dropout.compare.gpus import taken_gpus, visible_gpus
from transformer_dropout.errors import InputError


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,7")


def never():
    return False


def test_each_run_takes_one_that_no_other_has():
    with taken_gpus(None, never) as first, taken_gpus(1, never) as second:
        assert (first, second) == ({"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": "7"})
    with taken_gpus(2, never) as both:
        assert both == {"CUDA_VISIBLE_DEVICES": "3,7"}


def test_one_more_waits_until_one_is_free_or_is_told_to_stop():
    seen = []
    stopped = threading.Event()

    def run():
        with taken_gpus(None, stopped.is_set) as environment:
            seen.append(environment)

    with taken_gpus(2, never):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join(0.7)
        assert not seen
    thread.join(10)
    assert seen == [{"CUDA_VISIBLE_DEVICES": "3"}]
    with taken_gpus(2, never):
        stopped.set()
        run()
    assert seen[1] == {"CUDA_VISIBLE_DEVICES": ""}


def test_none_hides_them_and_too_many_are_refused(monkeypatch):
    with taken_gpus(0, never) as environment:
        assert environment == {"CUDA_VISIBLE_DEVICES": ""}
    with pytest.raises(InputError, match="--gpus 3: this machine shows 2"), taken_gpus(3, never):
        pass
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with taken_gpus(None, never) as environment:
        assert environment == {}


def test_the_gpus_are_those_that_are_named_or_all_that_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, ,GPU-a")
    assert visible_gpus() == ["5", "GPU-a"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpus() == ["0", "1", "2"]
