"""Large tensors in huge pages."""

import resource
from pathlib import Path

import pytest
import torch

from transformer_dropout.kernels import _memory
from transformer_dropout.kernels._memory import LARGE, empty_like

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def pages_written(make):
    """Return how many pages the system handed out for a tensor that is filled."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    make().fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [0, 10, LARGE // 2, LARGE + 12_345])
def test_it_is_an_empty_tensor_like_the_other(size, dtype):
    other = torch.empty(size, 1)
    result = empty_like(other, dtype)
    assert (result.shape, result.dtype) == (other.shape, dtype)
    result.fill_(1)
    assert result.count_nonzero() == size
    assert empty_like(other.to("meta")).device.type == "meta"


@pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text(), reason="the system has no huge pages"
)
def test_a_large_one_takes_fewer_pages():
    other = torch.empty(LARGE, dtype=torch.float32)
    few = min(pages_written(lambda: empty_like(other)) for _ in range(3))
    assert few < other.nbytes / 4096 / 2


def test_other_systems_have_it_without_the_advice(monkeypatch):
    monkeypatch.setattr(_memory, "system_library", lambda: None)
    assert empty_like(torch.empty(LARGE)).shape == (LARGE,)
