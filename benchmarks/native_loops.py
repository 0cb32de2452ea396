"""Each machine-code loop against the plain function that it equals, and the hand-written tile against loops.

Both sides are ours. A loop that gains less than `LEAST` is not worth its code; docs/native.md has the table.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from transformer_dropout.kernels._native import PURE, pure_pytorch
from transformer_dropout.kernels.attention import causal_attention
from transformer_dropout.kernels.dropout import dropout, mask_numbers
from transformer_dropout.kernels.mask import learned_mask
from transformer_dropout.kernels.random import draw_key
from transformer_dropout.kernels.row_skipping import kept_columns, kept_rows
from transformer_dropout.tasks.language.cache import Cache

from .decoding import PROMPT, masked_decoder, remembering
from .rounds import timed_ratio
from .row import Budget, Measurement, Row

LEAST = 1.2
P, PENALTY, KEEP = 0.2, 0.1, 0.25
Run = Callable[[], tuple[Tensor, ...]]


def loop_ratio(budget: Budget, *, build: Callable[[], tuple[Run, dict]], calls: int) -> Measurement:
    """Time a function in PyTorch's own operations and as a native loop.

    Args:
        budget: how many rounds.
        build: returns the function and what decides its numbers.
        calls: of the function in one round.
    """
    native, about = build()

    def plain() -> tuple[Tensor, ...]:
        with pure_pytorch():
            return native()

    gate = agreement(plain, native)
    sides = {"reference": plain, "ours": native}
    return timed_ratio(sides, budget, calls=1 if budget.quick else calls, gate=gate, about=about)


def agreement(first: Run, second: Run) -> str:
    """Check that two functions return the same under one seed, and say how nearly."""
    results = []
    for run in (first, second):
        torch.manual_seed(1)
        results.append([tensor.float() for tensor in run()])
    errors = [((a - b).norm() / a.norm()).item() for a, b in zip(*results, strict=True)]
    # Half a rounding of bfloat16 is 4e-3.
    assert max(errors) < 5e-3, f"the loop differs from the plain function by {max(errors):.1e}"
    return f"results and gradients equal within {max(errors):.0e} of their norms"


def about(*shape: int, dtype: torch.dtype = torch.float32, **others: Any) -> dict[str, Any]:
    """Return what decides the numbers of a row."""
    return {"shape": list(shape), "dtype": str(dtype).removeprefix("torch."), **others}


def attention(dtype: torch.dtype, p: float) -> tuple[Run, dict]:
    """Return causal attention forward and backward, with its shape."""
    batch, heads, tokens, size = 4, 12, 200, 13
    packed = torch.randn(batch, tokens, 3, heads, size).to(dtype).requires_grad_()
    gradient = torch.randn(batch, tokens, heads, size).to(dtype).transpose(1, 2)

    def run() -> tuple[Tensor, ...]:
        packed.grad = None
        query, key, value = packed.permute(2, 0, 3, 1, 4)
        out = causal_attention(query, key, value, p)
        out.backward(gradient)
        assert packed.grad is not None
        return out.detach(), packed.grad

    return run, about(batch, heads, tokens, size, dtype=dtype, p=p)


def mask(dtype: torch.dtype) -> tuple[Run, dict]:
    """Return the learned mask forward and backward, with its shape."""
    shape = 10_000, 144
    x, gate, gradient = (torch.randn(shape).to(dtype) for _ in range(3))
    leaves = [x.requires_grad_(), gate.requires_grad_(), torch.zeros(144, requires_grad=True)]

    def run() -> tuple[Tensor, ...]:
        y, penalty = learned_mask(*leaves, key=draw_key(), penalty="squared")
        assert penalty is not None
        return y.detach(), *torch.autograd.grad([y, PENALTY * penalty], leaves, [gradient, None])

    return run, about(*shape, dtype=dtype)


def plain_dropout(dtype: torch.dtype) -> tuple[Run, dict]:
    """Return dropout forward and backward, with its shape."""
    shape = 800, 156
    x, gradient = torch.randn(shape).to(dtype).requires_grad_(), torch.randn(shape).to(dtype)

    def run() -> tuple[Tensor, ...]:
        y = dropout(x, P)
        return y.detach(), *torch.autograd.grad(y, x, gradient)

    return run, about(*shape, dtype=dtype, p=P)


def rows() -> tuple[Run, dict]:
    """Return a product of a few rows, with its shape."""
    weight, x, kept = torch.randn(2048, 8192), torch.randn(8192), torch.rand(2048) < KEEP
    return lambda: (kept_rows(weight, x, kept),), about(2048, 8192, keep=KEEP)


def columns() -> tuple[Run, dict]:
    """Return a product of a few blocks of columns, with its shape."""
    weight, x, kept = torch.randn(768, 3072), torch.randn(3072), torch.rand(12) < KEEP
    kept[0] = True
    return lambda: (kept_columns(weight, x, kept),), about(768, 3072, keep=KEEP, block=256)


def decoder() -> tuple[Run, dict]:
    """Return the logits of one more token of a decoder that remembers, with its shape."""
    model, prompt = masked_decoder(), torch.randint(1000, (1, PROMPT))
    caches = {pure: Cache(model) for pure in (True, False)}

    @torch.no_grad()
    def run() -> tuple[Tensor, ...]:
        cache = caches[PURE.get()]
        if not cache.length:
            cache.read(prompt[:, :-1])
        return tuple(remembering(cache, prompt, 1))

    shape = model.config
    return run, about(shape.width, shape.heads, shape.blocks, shape.context, position=PROMPT)


def tile_ratio(budget: Budget) -> Measurement:
    """Time the attention loops with the tile written as plain loops, and as they are."""
    from transformer_dropout.kernels.native import attention as written

    batch, heads, tokens, size = 4, 9, 200, 16
    query, key, value, gradient = (torch.randn(batch, heads, tokens, size) for _ in range(4))
    numbers = (draw_key(), *mask_numbers(P))

    def run(loops: ModuleType) -> tuple[Tensor, ...]:
        out, log_sum = loops.attended(query, key, value, numbers)
        return out, *loops.gradients(gradient, query, key, value, out, log_sum, numbers)

    sides = {"reference": partial(run, with_plain_tiles()), "ours": partial(run, written)}
    gate = agreement(*sides.values())
    return timed_ratio(sides, budget, gate=gate, about=about(batch, heads, tokens, size, p=P))


def with_plain_tiles() -> ModuleType:
    """Return the attention loops compiled with tiles that are written as loops."""
    import numba

    from transformer_dropout.kernels.native._compiled import OPTIONS

    spec = importlib.util.find_spec("transformer_dropout.kernels.native.attention")
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.wide_tile = plain_tile(module.STEP, module.LANES)
    module.narrow_tile = plain_tile(module.STEP, module.VECTOR)
    for name in ("forward", "backward"):
        # Compiled anew: the code on disk has the other tile in it.
        compiler: Any = numba.njit
        setattr(module, name, compiler(**OPTIONS)(getattr(module, name).py_func))
    return module


def plain_tile(rows: int, width: int) -> Callable[..., Any]:
    """Return `native.tile.tile` as loops."""
    import numba
    import numpy as np

    @numba.njit(inline="always")
    def product(
        left, left_at, row_step, step, right, right_at, right_step, count, out, out_at, out_step, fresh
    ):
        for r in range(rows):
            total = out[out_at + r * out_step : out_at + r * out_step + width]
            if fresh:
                total[:] = np.float32(0)
            for k in range(count):
                number = left[left_at + r * row_step + k * step]
                line = right[right_at + k * right_step : right_at + k * right_step + width]
                for lane in range(width):
                    total[lane] += number * line[lane]

    return product


FLOAT, SHORT = torch.float32, torch.bfloat16
LOOPS: dict[str, tuple[Callable[[], tuple[Run, dict]], int]] = {
    "attention with dropout 0.2, float32": (partial(attention, FLOAT, P), 2),
    "attention with dropout 0.2, bfloat16": (partial(attention, SHORT, P), 2),
    "attention, float32": (partial(attention, FLOAT, 0.0), 2),
    "attention, bfloat16": (partial(attention, SHORT, 0.0), 2),
    "mask, float32": (partial(mask, FLOAT), 2),
    "mask, bfloat16": (partial(mask, SHORT), 2),
    "dropout, float32": (partial(plain_dropout, FLOAT), 20),
    "dropout, bfloat16": (partial(plain_dropout, SHORT), 20),
    "kept rows": (rows, 10),
    "kept columns": (columns, 10),
    "decoder": (decoder, 2),
}

ROWS = (
    *(
        Row(
            name=f"native loop, {name}: plain / native",
            path="native",
            target=LEAST,
            measure=partial(loop_ratio, build=build, calls=calls),
        )
        for name, (build, calls) in LOOPS.items()
    ),
    Row(
        name="native loop, the tile in attention: written as loops / ours",
        path="native",
        target=LEAST,
        measure=tile_ratio,
    ),
)
