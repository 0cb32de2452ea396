"""The mask operation alone, forward and backward: cosine, draw, product, penalty and all their gradients.

The other side is the published way of it, `published_twin.PublishedMask`: a noise tensor, a float16 round
trip, entropy, norm and near-0 and near-1 shares each step, the previous mask kept. It starts from the same
gate, so the attention before the mask is on neither side. Other rows divide by ``nn.Dropout(0.2)``.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from transformer_dropout.kernels.mask import learned_mask
from transformer_dropout.kernels.random import draw_key

from .published_twin import PublishedMask
from .rounds import timed_ratio
from .row import Budget, Measurement, Path, Row, each_path
from .saved_bytes import saved_bytes

TOKENS, QUICK_TOKENS = 10_000, 2_000
SHIFT = 1.2
Operation = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def ours(x: Tensor, gate: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Return output and penalty with a fresh mask."""
    y, penalty = learned_mask(x, gate, shift, key=draw_key(x.device), penalty="squared")
    assert penalty is not None
    return y, penalty


class Step:
    """Inputs of one width, and what one forward and backward of an operation gives for them."""

    def __init__(self, tokens: int, width: int) -> None:
        generator = torch.Generator().manual_seed(2024)
        self.x, self.gate, self.dy = (torch.randn(tokens, width, generator=generator) for _ in range(3))
        self.inputs = [self.x, self.gate, torch.full((width,), SHIFT)]
        for tensor in self.inputs:
            tensor.requires_grad_()

    def run(self, operation: Operation) -> tuple[Tensor, ...]:
        """Return output, penalty and the gradients of x, gate and shift."""
        y, penalty = operation(*self.inputs)
        return y, penalty, *torch.autograd.grad([y, penalty], self.inputs, [self.dy, torch.ones(())])

    def dropout(self, layer: nn.Dropout) -> tuple[Tensor, ...]:
        """Return the gradient of x through plain dropout."""
        return torch.autograd.grad(layer(self.x), self.x, self.dy)


def check(step: Step) -> str:
    """Check that both sides give the same penalty and gradients and keep as much, and say how close they are.

    Raises:
        AssertionError: when they do not.
    """
    y, penalty, _, *found = step.run(ours)
    reference, expected_penalty, _, *expected = step.run(PublishedMask())
    # The reference's norm adds up millions of numbers in float32, and its gradient goes through float16.
    torch.testing.assert_close(penalty, expected_penalty, rtol=2e-3, atol=0)
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]
    kept, share = ((output != 0).float().mean().item() for output in (y, reference))
    # Both draw: they agree within five standard errors.
    assert abs(kept - share) < 5 / y.numel() ** 0.5, f"ours keeps {kept:.4f}, the reference {share:.4f}"
    assert max(errors) < 2e-3, f"the gradients of gate and shift differ by {errors}"
    return f"gradients of gate and shift within {max(errors):.0e} of the reference's, kept {kept:.3f}"


def over_reference(budget: Budget, *, width: int) -> Measurement:
    """Time the published way and ours in turn."""
    step = Step(QUICK_TOKENS if budget.quick else TOKENS, width)
    sides = {"reference": partial(step.run, PublishedMask()), "ours": partial(step.run, ours)}
    return timed_ratio(sides, budget, calls=calls_for(step), gate=check(step), about=about(step))


def over_dropout(budget: Budget, *, width: int) -> Measurement:
    """Time ours and plain dropout in turn."""
    step = Step(QUICK_TOKENS if budget.quick else TOKENS, width)
    sides = {"ours": partial(step.run, ours), "dropout": partial(step.dropout, nn.Dropout(0.2))}
    found = timed_ratio(
        sides,
        budget,
        over="ours",
        under="dropout",
        calls=calls_for(step),
        gate=check(step),
        about=about(step),
    )
    return replace(found, action=sides["ours"])


def calls_for(step: Step) -> int:
    """Return how many calls make a round long enough to time."""
    return max(3, 4_000_000 // step.x.numel())


def about(step: Step) -> dict[str, object]:
    """Return the shape and the dtype."""
    return {"shape": list(step.x.shape), "dtype": "float32", "penalty": "squared"}


def bytes_an_element(step: Step, operation: Operation) -> float:
    """Return what a forward keeps for its backward, in bytes per element, beyond its inputs.

    Attention and the projection before it keep x and the gate for their own backward.
    """
    return saved_bytes(lambda: operation(*step.inputs), apart_from=step.inputs) / step.x.numel()


def bytes_for_backward(budget: Budget) -> Measurement:
    """Count the bytes that ours keeps, and for the record those of the published way."""
    step = Step(QUICK_TOKENS if budget.quick else TOKENS, 144)
    reference = round(bytes_an_element(step, PublishedMask()), 3)
    return Measurement(
        value=bytes_an_element(step, ours), gate=check(step), about=about(step) | {"reference": reference}
    )


OBSTACLES: dict[Path, str] = {
    "pure": "a cosine and a tangent of each element.",
    "native": "memory: inputs, outputs and gradients together are larger than the last cache.",
}


def timed_rows(width: int, faster: dict[Path, float], dropouts: dict[Path, float]) -> tuple[Row, ...]:
    """Return the rows of one width from their targets."""
    name = f"mask operation, {TOKENS:,}x{width}"
    return (
        *(
            Row(
                name=f"{name}: reference / ours",
                path=path,
                target=target,
                measure=partial(over_reference, width=width),
                obstacle=OBSTACLES[path],
            )
            for path, target in faster.items()
        ),
        *(
            Row(
                name=f"{name}: ours / nn.Dropout(0.2)",
                path=path,
                target=target,
                at_least=False,
                measure=partial(over_dropout, width=width),
                obstacle=OBSTACLES[path],
            )
            for path, target in dropouts.items()
        ),
    )


BYTES: dict[Path, float] = {"pure": 1.0, "native": 0.13}
ROWS = (
    *timed_rows(144, {"pure": 2.7, "native": 12.0}, {"pure": 1.5, "native": 0.5}),
    *timed_rows(1024, {"pure": 3.3, "native": 10.0}, {"pure": 2.5, "native": 0.7}),
    *each_path(
        BYTES,
        name="bytes the mask keeps for its backward, an element",
        at_least=False,
        unit="bytes",
        measure=bytes_for_backward,
    ),
)
