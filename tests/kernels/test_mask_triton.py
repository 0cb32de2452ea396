"""The mask operation in Triton: interpreted and compiled without a GPU, and run where there is one."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from transformer_dropout.functional import straight_through
from transformer_dropout.kernels import mask
from transformer_dropout.kernels._native import takes_triton
from transformer_dropout.kernels.random import draw_key, uniform

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed: pip install triton"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


@needs_triton
@pytest.mark.parametrize(
    ("file", "interpret"), [("interpreted_mask_triton.py", "1"), ("compiled_mask_triton.py", "0")]
)
def test_without_a_gpu(file, interpret):
    """Triton chooses between interpreter and compiler while it is imported, so each has its own process."""
    options = ["-p", "no:cacheprovider", "--noconftest"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(Path(__file__).with_name(file))],
        env=os.environ | {"TRITON_INTERPRET": interpret, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_tensors_of_the_processor_are_not_taken():
    assert not takes_triton(torch.ones(2, 2))


def on_the_gpu(*shape, seed):
    return torch.randn(*shape, device="cuda", generator=torch.Generator(device="cuda").manual_seed(seed))


@needs_gpu
@needs_triton
@pytest.mark.parametrize("width", [1024, 144, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gpu_computes_the_formula(width, dtype):
    x, gate, dy = (on_the_gpu(4099, width, seed=seed).to(dtype) for seed in range(3))
    leaves = [leaf.requires_grad_() for leaf in (x, gate, on_the_gpu(width, seed=3))]
    key = draw_key("cuda")
    assert takes_triton(*leaves)
    y, penalty = mask.learned_mask(*leaves, key=key, penalty="squared")
    torch.autograd.backward((y, penalty), (dy, torch.tensor(0.5, device="cuda")))

    x, gate, shift = (leaf.detach().double().requires_grad_() for leaf in leaves)
    probability = 0.5 * torch.cos(gate + shift) + 0.5
    hard = (uniform(key, x.numel()).view_as(x) < probability).double()
    soft = x * straight_through(hard, probability)
    expected = probability.square().mean() / 2
    torch.autograd.backward((soft, expected), (dy.double(), torch.tensor(0.5, device="cuda").double()))

    torch.testing.assert_close(penalty.double(), expected, rtol=1e-6, atol=0)
    # A probability that differs in its last bit turns about one element in 2^24.
    assert (y != soft).float().mean() < 1e-5
    # The backward makes the mask again, and makes it exactly.
    assert torch.equal((leaves[0].grad != 0) & (leaves[0] != 0), (y != 0) & (dy != 0))
    for leaf, twin in ((leaves[1], gate), (leaves[2], shift)):
        error = (leaf.grad.double() - twin.grad).norm() / twin.grad.norm()
        assert error < (1e-6 if leaf.dtype == torch.float32 else 1e-2)


@needs_gpu
@needs_triton
def test_a_cuda_graph_draws_a_fresh_mask_at_each_replay():
    x, gate = torch.ones(64, 256, device="cuda"), torch.randn(64, 256, device="cuda")
    shift = torch.ones(256, device="cuda")

    def run():
        return mask.learned_mask(x, gate, shift, key=draw_key("cuda"))[0]

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = run()
    masks = []
    for _ in range(2):
        graph.replay()
        masks.append(y.clone())
    assert not torch.equal(*masks) and set(masks[0].unique().tolist()) == {0.0, 1.0}


@needs_gpu
@needs_triton
def test_addresses_reach_beyond_2_to_the_31_elements():
    rows, width = 2**21 + 64, 1024
    x = torch.ones(rows, width, device="cuda", dtype=torch.bfloat16)
    gate = torch.zeros_like(x)
    gate[-1] = 3.2  # in the last row nothing is kept, everywhere else everything
    y, _ = mask.learned_mask(x, gate, torch.zeros(width, device="cuda"))
    assert bool((y[:-1] == 1).all()) and not y[-1].any()
