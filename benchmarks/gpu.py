"""What runs on a GPU: the mask operation and a whole training step.

The other side of a mask row is ``copy_`` between two tensors, in the same rounds: the speed limit of whatever
reads and writes memory once. Its size is chosen so that it moves the bytes that the operation must move.

The other side of a step is the published way of it, as in `training_step`, eager or compiled, in bfloat16;
ours is compiled into CUDA graphs.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from transformer_dropout.functional import cosine_keep_probability
from transformer_dropout.kernels._native import triton_installed
from transformer_dropout.kernels.mask import learned_mask
from transformer_dropout.kernels.random import draw_key, uniform
from transformer_dropout.layers import LearnedDropout
from transformer_dropout.tasks.language.decoder import DecoderConfig

from .mask_operation import ours
from .rounds import timed_ratio
from .row import Budget, Measurement, Row
from .training_sides import Side, check_same, learned_rule, our_side, published_side
from .training_step import ALLOWED, LEARNED, VOCABULARY, blocks

ROWS_OF_X, WIDTH = 2**16, 1024
# Tensors that must be read or written: x, gate, y; and dy, x, gate, dx, dgate.
FORWARD_TENSORS, BACKWARD_TENSORS = 3, 5
REPLAYS = 8
# Windows of a step: enough to keep a GPU busy. Steps before timing: graphs are recorded in the first ones.
BATCH, FIRST_STEPS = 64, 5


def mask_inputs(rows: int, width: int, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ``x``, the gate, the shift and the gradient of ``y``; all but the shift in bfloat16."""
    # Rounded and not drawn in bfloat16, where some versions draw 0 in one of 250 elements.
    x, gate, dy = (torch.randn(rows, width, device=device).bfloat16() for _ in range(3))
    shift = torch.ones(width, device=device)
    return x.requires_grad_(), gate.requires_grad_(), shift.requires_grad_(), dy


def mask_gate(device: str, rows: int = 2**10, width: int = WIDTH) -> str:
    """Check the mask operation on a device against its formula in float64, and say how close it came.

    Raises:
        AssertionError: when its draws, its gradients or the masks of its two passes are not the formula's.
    """
    x, gate, shift, dy = mask_inputs(rows, width, device)
    key = draw_key(device)
    y, _ = learned_mask(x, gate, shift, key=key)
    gradients = torch.autograd.grad(y, (x, gate), dy)
    x, y, gate, shift = (tensor.detach() for tensor in (x, y, gate, shift))
    probability = cosine_keep_probability(gate.double(), shift.double())
    kept = uniform(key, x.numel()).view_as(x) < probability
    # A probability that differs in its last bit turns about one element in 2^24.
    turned = (y != x * kept).double().mean()
    assert turned < 1e-5, f"{turned:.1e} of the draws are not those of the formula"
    assert torch.equal(gradients[0], dy * (y != 0)), "forward and backward made different masks"
    slope = -torch.sin(gate.double() + shift.double()) / 2
    expected = dy.double() * x.double() * slope
    error = float((gradients[1] - expected).norm() / expected.norm())
    assert error < 1e-2, f"the gate's gradient is off by {error:.1e}"
    return f"draws equal but for {float(turned):.0e}, the gate's gradient within {error:.0e} of the formula's"


def share_of_copy(budget: Budget, *, action: Callable[[], object], tensors: int, size: int) -> Measurement:
    """Time a copy and an action that moves as many bytes; the ratio is the action's share of its bandwidth.

    Args:
        budget: how many rounds.
        action: reads or writes some bfloat16 tensors, each once.
        tensors: how many.
        size: elements of each.
    """
    source = torch.zeros(tensors * size // 2, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    found = timed_ratio(
        {"copy": lambda: target.copy_(source), "ours": action},
        budget,
        over="copy",
        calls=10 if budget.quick else 50,
        gate=mask_gate("cuda"),
        about=device_about() | {"elements": size, "dtype": "bfloat16"},
        cuda=True,
    )
    speed = 2 * source.nbytes / found.seconds["copy"] / 1e9
    return replace(found, about={**found.about, "copy GB/s": round(speed)})


def device_about() -> dict[str, Any]:
    """Return which GPU it is, and whether the operation runs in Triton."""
    return {"GPU": torch.cuda.get_device_name(), "Triton": triton_installed()}


def forward_share(budget: Budget) -> Measurement:
    """Measure a forward with its fresh key and its penalty."""
    x, gate, shift, _ = mask_inputs(ROWS_OF_X, WIDTH, "cuda")
    forward = partial(ours, x, gate, shift)
    return share_of_copy(budget, action=forward, tensors=FORWARD_TENSORS, size=x.numel())


def backward_share(budget: Budget) -> Measurement:
    """Measure a backward with the gradients of x, gate, shift and penalty."""
    x, gate, shift, dy = mask_inputs(ROWS_OF_X, WIDTH, "cuda")
    outputs, ones = ours(x, gate, shift), torch.ones((), device="cuda")
    backward = partial(torch.autograd.grad, outputs, (x, gate, shift), (dy, ones), retain_graph=True)
    return share_of_copy(budget, action=backward, tensors=BACKWARD_TENSORS, size=x.numel())


def fresh_masks(budget: Budget) -> Measurement:
    """Count the different masks that the replays of one CUDA graph draw, by the number of replays."""
    x, gate, shift, _ = (tensor.detach() for tensor in mask_inputs(64, WIDTH, "cuda"))
    x.fill_(1)

    ours(x, gate, shift)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, _ = ours(x, gate, shift)
    masks = []
    for _ in range(REPLAYS):
        graph.replay()
        masks.append(y.flatten().to(torch.int8))
    different = len(torch.stack(masks).unique(dim=0))
    return Measurement(value=different / REPLAYS, gate=mask_gate("cuda"), about=device_about())


def on_device(side: Side, device: str) -> Side:
    """Move a side's model and tokens; its optimizer follows with the first step."""
    side.model.to(device)
    return replace(side, tokens=side.tokens.to(device))


def step_sides(shape: DecoderConfig, vocabulary: int, batch: int, device: str) -> tuple[Side, Side, str]:
    """Return the published step and ours on a device, and how close they are, both still eager."""
    rules = [learned_rule(LearnedDropout, shape)]
    reference = on_device(published_side(vocabulary, shape, batch, learned=True, autocast=True), device)
    mine = on_device(our_side(vocabulary, shape, batch, rules, autocast=True), device)
    loss, gradient = ALLOWED[True]
    return reference, mine, check_same(mine, reference, loss=loss, gradient=gradient)


def step_ratio(budget: Budget, *, compiled: bool) -> Measurement:
    """Time a step the published way and ours.

    Args:
        budget: how many rounds, and how many blocks.
        compiled: whether the published side is compiled too.
    """
    shape = DecoderConfig(**LEARNED, blocks=blocks(budget))
    reference, mine, gate = step_sides(shape, VOCABULARY, BATCH, "cuda")
    mine.model.compile(mode="reduce-overhead")
    if compiled:
        reference.model.compile()
    for side in (reference, mine):
        for _ in range(FIRST_STEPS):
            side.step()
    return timed_ratio(
        {"reference": reference.step, "ours": mine.step},
        budget,
        calls=5,
        gate=gate,
        about=device_about()
        | {"shape": {"batch": BATCH, **LEARNED, "blocks": shape.blocks}, "dtype": "bfloat16"},
        cuda=True,
    )


ROWS = (
    Row(
        name="mask operation forward on a GPU, 64 M elements: copy / ours",
        path="gpu",
        target=0.85,
        measure=forward_share,
    ),
    Row(
        name="mask operation backward on a GPU, 64 M elements: copy / ours",
        path="gpu",
        target=0.80,
        measure=backward_share,
    ),
    Row(
        name="different masks in the replays of a CUDA graph / replays",
        path="gpu",
        target=1.0,
        measure=fresh_masks,
    ),
    Row(
        name="training step on a GPU, bfloat16: eager reference / ours",
        path="gpu",
        target=3.0,
        measure=partial(step_ratio, compiled=False),
    ),
    Row(
        name="training step on a GPU, bfloat16: compiled reference / ours",
        path="gpu",
        target=2.0,
        measure=partial(step_ratio, compiled=True),
    ),
)
