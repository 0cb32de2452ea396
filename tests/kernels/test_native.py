"""Which tensors native code takes, and what happens where it is not there."""

import os
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from transformer_dropout.kernels import _native
from transformer_dropout.kernels._native import pure_pytorch, takes_native


@pytest.fixture(autouse=True)
def with_numba(monkeypatch):
    monkeypatch.setattr(_native, "numba_installed", lambda: True)


class Wrapped(torch.Tensor):
    """A tensor that is not an ordinary one."""


def test_plain_contiguous_tensors_of_two_dtypes_are_taken():
    for dtype in (torch.float32, torch.bfloat16):
        assert takes_native(torch.zeros(2, 3, dtype=dtype), torch.nn.Parameter(torch.zeros(3)))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, 3, dtype=torch.float64),
        torch.zeros(2, 3, dtype=torch.float16),
        torch.zeros(2, 3).T,
        torch.zeros(2, 3, device="meta"),
        torch.zeros(2, 3).as_subclass(Wrapped),
    ],
    ids=["float64", "float16", "strided", "meta", "subclass"],
)
def test_other_tensors_are_not(tensor):
    assert not takes_native(torch.zeros(2), tensor)


def test_nothing_is_taken_where_pure_pytorch_is_asked_for():
    with pure_pytorch():
        assert not takes_native(torch.zeros(2))
        with pure_pytorch():
            pass
        assert not takes_native(torch.zeros(2))
    assert takes_native(torch.zeros(2))


def test_nothing_is_taken_while_operations_are_watched_or_transformed():
    with FlopCounterMode(display=False):
        assert not takes_native(torch.zeros(2))
    seen = []
    torch.func.vmap(lambda x: seen.append(takes_native(x)) or x)(torch.zeros(2, 3))
    torch.func.grad(lambda x: seen.append(takes_native(x)) or x.sum())(torch.zeros(3))

    def compiled(x):
        return x + 1 if takes_native(x) else x - 1

    assert torch.equal(torch.compile(compiled, backend="eager")(torch.zeros(2)), -torch.ones(2))
    assert seen == [False, False]


def test_nothing_is_taken_without_numba(monkeypatch):
    monkeypatch.setattr(_native, "numba_installed", lambda: False)
    assert not takes_native(torch.zeros(2))


CODE = """
import sys
import torch
from transformer_dropout.kernels.mask import learned_mask
x, gate = torch.randn(5, 16), torch.randn(5, 16)
y, _ = learned_mask(x, gate, torch.ones(16))
assert torch.equal(y, x * (torch.cos(gate + 1) >= 0))
print("numba" in sys.modules)
"""


@pytest.mark.parametrize("case", ["a cache that cannot be written", "no numba"])
def test_a_machine_that_lacks_something_runs_without_a_word(case, tmp_path):
    pytest.importorskip("numba")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if case == "no numba":
        hidden = "import importlib.util as u; f = u.find_spec\n"
        hidden += "u.find_spec = lambda name, package=None: None if name == 'numba' else f(name, package)\n"
    else:
        hidden = ""
        environment["NUMBA_CACHE_DIR"] = "/dev/null/nowhere"
        environment["NUMBA_CACHE_LOCATOR_CLASSES"] = "UserProvidedCacheLocator"
    command = [sys.executable, "-W", "error", "-c", hidden + CODE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.strip() == str(case != "no numba")
