"""The kernels of mask_triton.py, compiled to machine code for GPUs that need not be here."""

from types import SimpleNamespace

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget

from transformer_dropout.kernels import mask_triton

KEY = torch.tensor([-5, 7], dtype=torch.int32)


class Compiled:
    """Stands for a kernel; compiles it for the arguments of a launch, and launches nothing."""

    def __init__(self, kernel, made):
        self.kernel, self.made = kernel, made

    def __getitem__(self, grid):
        return lambda *args, **settings: self.made.append(self.kernel.warmup(*args, grid=grid, **settings))


@pytest.fixture(params=[80, 90], ids=["A100", "H200"])
def made(request, monkeypatch, tmp_path):
    """The binaries of all launches, for a GPU of some compute capability."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", request.param, 32),
        get_current_device=lambda: request.param,
        get_current_stream=lambda device: 0,
    )
    triton.runtime.driver.set_active(driver)
    binaries = []
    for name in ("forward_kernel", "backward_kernel"):
        monkeypatch.setattr(mask_triton, name, Compiled(getattr(mask_triton, name), binaries))
    return binaries


@pytest.mark.parametrize(
    ("rows", "width", "dtype", "key", "penalty", "weighted"),
    [
        (64, 256, torch.bfloat16, KEY, "squared", False),
        (10, 33, torch.float16, KEY, "linear", True),
        (1, 1, torch.float32, None, None, False),
    ],
)
def test_every_kind_of_launch_compiles(rows, width, dtype, key, penalty, weighted, made):
    x, gate = torch.empty(2, rows, width, dtype=dtype)
    shift, weight = torch.empty(width), torch.empty(rows) if weighted else None
    mask_triton.masked(x, gate, shift, key, penalty, weight, keep=True)
    scale = None if penalty is None else torch.ones(())
    mask_triton.gradients(x, scale, x, gate, shift, key, penalty, weight)
    assert [binary.metadata.num_warps for binary in made] == [mask_triton.WARPS] * 2
    assert all(binary.asm["cubin"] for binary in made)


def test_a_thread_moves_16_bytes_at_once_and_addresses_reach_beyond_2_to_the_31(made):
    x, gate = torch.empty(2, 64, 256, dtype=torch.bfloat16)
    mask_triton.masked(x, gate, torch.empty(256), KEY, "squared", None, keep=True)
    code = made[0].asm["ptx"]
    assert code.count("ld.global.v4.b32") >= 2 and "st.global.v4.b32" in code
    # The start of a tile is a product in 64 bits.
    assert "mul.lo.s64" in code or "mad.lo.s64" in code
