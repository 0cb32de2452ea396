"""LearnedBlockDropout: a cheap prediction drops blocks of hidden units, so that products are skipped."""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional
from ..errors import InputError, check_choice
from ..kernels import random
from ..kernels.block_products import (
    Product,
    TwoProducts,
    can_group,
    grouped_mlp,
    one_token_mlp,
    pays,
    reads_kept_only,
)
from ..kernels.linear import working_dtype
from ._base import DropoutLayer
from .learned_dropout import PENALTIES, PenaltyName

Estimator = Literal["dense", "kept", "weighted", "sampled"]

# The estimator "weighted" gives a kept block of probability M the weight 1 / M, up to this.
LARGEST_WEIGHT = 10.0
# The share of the tokens whose dropped blocks the estimator "sampled" computes too.
PROBED = 0.1


def draw_blocks(
    keep_probability: Tensor, noise: Tensor, token_noise: Tensor, estimator: Estimator
) -> tuple[Tensor, Tensor]:
    """Return which blocks are kept, and by how much the mask's gradient at each block is multiplied.

    Formula, with ``m = 1[u < M]`` and ``v`` the token's own random number::

        dense:     1
        kept:      m
        weighted:  m * min(1 / M, 10)
        sampled:   m + 10 * (1 - m) * 1[v < 1 / 10]

    Where a dropped block's factor is 0, the block need not be computed.

    Shape:
        keep_probability, noise, both results: (..., blocks); token_noise: (..., 1); the first result is
        boolean.
    """
    kept = noise < keep_probability
    probability = keep_probability.detach()
    factor = kept.to(probability.dtype)
    if estimator == "dense":
        factor = torch.ones_like(factor)
    elif estimator == "weighted":
        factor = factor * probability.reciprocal().clamp_max(LARGEST_WEIGHT)
    elif estimator == "sampled":
        probed = (token_noise < PROBED) & ~kept
        factor = factor + probed.to(factor.dtype) / PROBED
    return kept, factor


def apply_blocks(hidden: Tensor, kept: Tensor, soft: Tensor) -> Tensor:
    """Multiply blocks of hidden units by the mask, whose gradient passes straight through to ``soft``.

    Shape:
        hidden: (..., blocks * block); kept, soft: (..., blocks).
    """
    mask = functional.straight_through(kept.to(soft.dtype), soft).to(hidden.dtype)
    return (hidden.unflatten(-1, (kept.shape[-1], -1)) * mask.unsqueeze(-1)).flatten(-2)


class LearnedBlockDropout(DropoutLayer):
    """Multiply blocks of an MLP's hidden units by 0/1 masks that a small network predicts for each token.

    Formula, with ``z`` the MLP's input and the hidden units in blocks::

        M = 0.5 cos(U gelu(D z) + shift) + 0.5            one number per block
        training:    m = 1[u < M],  u ~ U[0, 1)
        evaluation:  m = 1[M >= 0.5]
        y = W_2 (m * activation(W_1 z))

    Since m is known before the first product, what it drops need not be computed. Where `regularize_` finds
    a plain MLP of two products it is not, when enough is dropped to make up for sorting the tokens. In
    compiled graphs, and at any other place, everything is computed and then multiplied; at other places ``z``
    is what the layer acts on. ``repr`` and ``Regularization.report`` say what was skipped.

    A block that is not computed has no gradient for its mask. The estimator says what stands for it; see
    `draw_blocks`. It gives the same gradients whether products are skipped or not.

    Args:
        width: hidden units.
        block: units of a block; it divides the width.
        rank: width of the predicting network's hidden layer; None for a quarter of the width of its input.
        shift: initial value of the shift vector, in [0, pi]: M starts near ``cos(shift / 2)^2``.
        estimator: "dense" for the straight-through gradient of every block, which skips nothing in training;
            "kept" for that of kept blocks only; "weighted" for the same times 1 / M, up to 10; "sampled" for
            that of kept blocks and, times 10, of the dropped ones of one token in ten.
        skip_from: the progress from which the estimator counts and products are skipped; "dense" until then.
        penalty: "squared", "linear", "entropy" or None, as in ``LearnedDropout``.
        inputs: channels of z; None for those of the hidden units. `regularize_` gives the MLP's input width.

    Shape:
        x: (..., width), and the result. With ``mlp``: x and the result are the MLP's, (..., inputs).

    Raises:
        InputError: for a block that does not divide the width, a number out of range, an unknown word.

    Papers: Yan 2024, "Learned Dropout", for the mask; Bengio et al. 2015, "Conditional computation in neural
    networks for faster models", for predicting blocks that need not be computed.
    """

    computes_mlp = True

    def __init__(
        self,
        width: int,
        block: int = 64,
        *,
        rank: int | None = None,
        shift: float = math.pi / 2,
        estimator: Estimator = "sampled",
        skip_from: float = 0.0,
        penalty: PenaltyName | None = "squared",
        inputs: int | None = None,
    ) -> None:
        super().__init__()
        check_choice(estimator, get_args(Estimator), "estimator")
        if penalty is not None:
            check_choice(penalty, get_args(PenaltyName), "penalty")
        check_numbers(width, block, rank, shift, skip_from)
        self.width, self.block, self.estimator, self.skip_from = width, block, estimator, float(skip_from)
        self.penalty, self.has_penalty = penalty, penalty is not None
        self.inputs = width if inputs is None else inputs
        self.rank = max(self.inputs // 4, 1) if rank is None else rank
        # Parameters of its own, not linear layers, so that the layer is one line of a report.
        self.down = nn.Parameter(torch.empty(self.rank, self.inputs))
        self.up = nn.Parameter(torch.empty(width // block, self.rank))
        self.shift = nn.Parameter(torch.full((width // block,), float(shift)))
        for weight in (self.down, self.up):
            nn.init.normal_(weight, std=0.02)
        self.skipping = self.skip_from == 0
        self.computed: float | None = None

    def set_progress(self, progress: float) -> None:
        """Skip products from ``skip_from`` on."""
        self.skipping = progress >= self.skip_from

    def keep_probability(self, z: Tensor, multiply: Callable[..., Tensor] = F.linear) -> Tensor:
        """Return ``M``, the probability of keeping each block, in float32 at least.

        Args:
            z: what it is predicted from.
            multiply: what computes products.
        """
        gate = multiply(F.gelu(multiply(z, self.down)), self.up)
        return functional.cosine_keep_probability(
            gate.to(torch.promote_types(gate.dtype, torch.float32)), self.shift
        )

    def draw(self, keep_probability: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mask of this mode, and the factor of its gradient at each block."""
        if not self.training:
            kept = keep_probability >= 0.5
            return kept, kept.to(keep_probability.dtype)
        key = random.draw_key(keep_probability.device)
        pairs, tokens = keep_probability.numel(), keep_probability.shape[:-1].numel()
        noise, token_noise = random.uniform(key, pairs + tokens).split([pairs, tokens])
        return draw_blocks(
            keep_probability,
            noise.view_as(keep_probability),
            token_noise.view(*keep_probability.shape[:-1], 1),
            self.estimator if self.skipping else "dense",
        )

    def forward(self, x: Tensor, mlp: TwoProducts | None = None) -> Tensor:
        keep_probability = self.keep_probability(x, F.linear if mlp is None else mlp.first.multiply)
        if self.training and self.penalty is not None:
            self.store_penalty(PENALTIES[self.penalty](keep_probability))
        kept, factor = self.draw(keep_probability)
        if self.observer is not None:
            self.observer(keep_probability, kept)
        soft = factor * keep_probability
        if mlp is None:
            return apply_blocks(x, kept, soft)
        if self.skips(x, mlp, kept):
            return self.skipped(x, mlp, kept, factor, soft)
        hidden = mlp.activation(mlp.first(x))
        return mlp.second(apply_blocks(hidden, kept, soft))

    def skips(self, x: Tensor, mlp: TwoProducts, kept: Tensor) -> bool:
        """Return whether this forward leaves dropped blocks uncomputed, and note how much is computed."""
        if not can_group(kept, mlp.first.weight, mlp.second.weight):
            return False
        share = kept.sum().item() / max(kept.numel(), 1)
        wanted = not self.training or (self.skipping and self.estimator != "dense")
        skips = wanted and (reads_kept_only(x, mlp, kept) or pays(share, self.block, working_dtype(x)))
        self.computed = share if skips else 1.0
        return skips

    def skipped(self, x: Tensor, mlp: TwoProducts, kept: Tensor, factor: Tensor, soft: Tensor) -> Tensor:
        """Return the MLP's result without computing dropped blocks."""
        x, mlp = in_working_dtype(x, mlp)
        if reads_kept_only(x, mlp, kept):
            return one_token_mlp(x.flatten(), mlp, kept.flatten(), self.block).view_as(x)
        probed = None
        if self.training and self.estimator == "sampled":
            probed = ((factor > 0) & ~kept).flatten(0, -2)
        out = grouped_mlp(
            x.flatten(0, -2), mlp, kept.flatten(0, -2), soft.flatten(0, -2), self.block, probed=probed
        )
        return out.view(*x.shape[:-1], -1)

    def extra_repr(self) -> str:
        products = "masked, not skipped"
        if self.in_plain_mlp:
            products = "skipped" if self.skipping and self.estimator != "dense" else "skipped in evaluation"
        text = (
            f"width={self.width}, block={self.block}, rank={self.rank}, estimator={self.estimator!r}, "
            f"dropped blocks: {products}"
        )
        return text if self.computed is None else f"{text}, computed last: {self.computed:.0%}"


def in_working_dtype(x: Tensor, mlp: TwoProducts) -> tuple[Tensor, TwoProducts]:
    """Return input and weights in the dtype that linear layers compute in here."""
    dtype = working_dtype(x)
    first, second = (
        Product(weight.to(dtype), None if bias is None else bias.to(dtype), multiply)
        for weight, bias, multiply in (mlp.first, mlp.second)
    )
    return x.to(dtype), TwoProducts(first, mlp.activation, second)


def check_numbers(width: int, block: int, rank: int | None, shift: float, skip_from: float) -> None:
    """Refuse sizes that do not fit and numbers out of range.

    Raises:
        InputError: naming the first.
    """
    if block < 1 or width % block:
        near = [size for size in (256, 128, 64, 32, 16, 8, 4, 2, 1) if width % size == 0 and size < width]
        raise InputError(
            f"A width of {width} cannot be split into blocks of {block}; write a number that divides "
            f"{width}, such as block={near[0] if near else 1}."
        )
    if rank is not None and rank < 1:
        raise InputError(f"rank is {rank}; write the hidden width of the predicting network, 1 or more.")
    if not 0 <= shift <= math.pi:
        raise InputError(f"shift is {shift}, but it lies between 0 and pi (3.14159...).")
    if not 0 <= skip_from <= 1:
        raise InputError(f"skip_from is {skip_from}, but progress lies between 0 and 1.")
