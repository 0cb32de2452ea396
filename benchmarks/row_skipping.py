"""The second product of an MLP for one token, some outputs dropped, against the same code dense.

Both sides are the native loop over rows; the dense one keeps every row. There is no published twin here: the
published masks drop outputs that were computed before.
"""

from functools import partial

import torch

from transformer_dropout.kernels.row_skipping import kept_rows

from .rounds import timed_ratio
from .row import Budget, Measurement, Row

# By the fraction kept, the ratio to be reached; 1 / keep would be free skipping.
TARGETS = {0.25: 2.6, 0.4: 1.9, 0.6: 1.35}
WIDTHS = (2048, 4096)


def kept_rows_ratio(budget: Budget, *, width: int, keep: float) -> Measurement:
    """Time one product with every row and with the kept ones.

    Args:
        budget: how many rounds.
        width: outputs; inputs are four times as many.
        keep: the fraction of outputs kept, at random places.
    """
    weight, x = torch.randn(width, 4 * width), torch.randn(4 * width)
    kept, every = torch.rand(width) < keep, torch.ones(width, dtype=torch.bool)
    expected = (weight @ x) * kept
    error = (kept_rows(weight, x, kept) - expected).abs().max() / expected.abs().max()
    assert error < 1e-5, f"the kept rows differ from the dense product by {error:.1e}"
    return timed_ratio(
        {
            "reference": partial(kept_rows, weight, x, every),
            "ours": partial(kept_rows, weight, x, kept),
        },
        budget,
        calls=3 if budget.quick else 10,
        gate=f"kept rows equal the dense product's within {error:.0e} of the largest",
        about={"shape": [width, 4 * width], "keep": keep, "dtype": "float32", "kept": int(kept.sum())},
    )


ROWS = tuple(
    Row(
        name=f"row-skipping product, width {width}, keep {keep}: dense / kept rows",
        path="native",
        target=target,
        measure=partial(kept_rows_ratio, width=width, keep=keep),
        obstacle="memory bandwidth: both sides read their rows of the weight once.",
    )
    for width in WIDTHS
    for keep, target in TARGETS.items()
)
