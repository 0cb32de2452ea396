"""One linear layer in float32: PyTorch's own product and oneDNN's, on which much of the table rests.

Which library PyTorch takes by itself is a matter of the processor: where that one is slow, every row whose
reference computes with it gains.
"""

import torch
import torch.nn.functional as F

from transformer_dropout.kernels.linear import OneDnnProduct, takes_onednn

from .rounds import timed_ratio
from .row import Budget, Measurement, Row

# What is in the way of every training step in float32.
PRODUCTS = "the products, whose time is nearly the same on both sides (first row), and attention."
ROWS_OF_X, INPUTS, OUTPUTS = 1024, 384, 1536


def product_ratio(budget: Budget) -> Measurement:
    """Time a linear layer, forward and backward, by PyTorch's own product and by oneDNN's."""
    x = torch.randn(ROWS_OF_X, INPUTS, requires_grad=True)
    weight = torch.randn(OUTPUTS, INPUTS, requires_grad=True)
    bias = torch.randn(OUTPUTS, requires_grad=True)
    assert takes_onednn(x, weight, bias), "PyTorch has no oneDNN here"

    def both_ways(linear):
        y = linear(x, weight, bias)
        return y.detach(), *torch.autograd.grad(y.sum(), (x, weight, bias))

    sides = {"reference": lambda: both_ways(F.linear), "ours": lambda: both_ways(OneDnnProduct.apply)}
    found, expected = sides["ours"](), sides["reference"]()
    off = max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))
    assert off < 1e-5, f"results and gradients differ by {off} of their norms"
    return timed_ratio(
        sides,
        budget,
        calls=1 if budget.quick else 10,
        gate=f"results and gradients equal within {off:.0e} of their norms",
        about={"shape": [ROWS_OF_X, INPUTS, OUTPUTS], "dtype": "float32"},
    )


ROWS = (
    Row(
        name=f"linear layer, {ROWS_OF_X:,} x {INPUTS} to {OUTPUTS}, float32: PyTorch's product / oneDNN's",
        path="pure",
        target=1.0,
        measure=product_ratio,
    ),
)
