"""LearnedDropout: a 0/1 mask computed from the input, in training and in evaluation."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from .. import functional
from ..errors import InputError, check_choice
from ..kernels.mask import learned_mask, takes_learned_mask
from ..kernels.random import draw_key
from ._base import DropoutLayer
from ._token_gate import TokenGate

EvalMask = Literal["threshold", "mean", "sample"]
PenaltyName = Literal["squared", "linear", "entropy"]

PENALTIES = {
    "squared": functional.squared_penalty,
    "linear": functional.linear_penalty,
    "entropy": functional.entropy_penalty,
}


# What a subclass may define anew.
FORMULAS = ("keep_probability", "mask", "penalty_of")


def method_of(owner: object, name: str) -> object:
    """Return the function behind a method."""
    method = getattr(owner, name)
    return getattr(method, "__func__", method)


def check_heads(width: int, heads: int) -> None:
    """Refuse a width that the heads do not divide."""
    if heads < 1 or width % heads:
        raise InputError(
            f"A width of {width} cannot be split among {heads} heads; choose heads that divide {width}."
        )


class LearnedDropout(DropoutLayer):
    """Multiply the input by a 0/1 mask that attention and a cosine compute from it.

    Formula, with ``q, k, v = X W_q, X W_k, X W_v``::

        M = 0.5 cos(softmax(q k^T / sqrt(d)) v + shift) + 0.5
        training:    y = X * 1[u < M],  u ~ U[0, 1), the gradient passing straight through to M
        evaluation:  y = X * 1[M >= 0.5]        (or X * M, or sampled)

    Nothing is rescaled by 1 / keep. The penalty of a layer is ``mean(M^2 / 2)`` ("squared"), ``mean(M)``
    ("linear") or the mean binary entropy of M in nats ("entropy"). Another mask function is a subclass
    that overrides ``keep_probability``.

    Args:
        width: number of channels of the input.
        heads: attention heads; they divide the width.
        shift: initial value of the shift vector, in [0, pi]: 0 starts by keeping all, pi by dropping all.
            At exactly 0 and pi the cosine is flat, so the gate's first gradients are tiny.
        causal: whether a token's mask depends only on itself and the tokens before it.
        bias: whether the q, k, v projection has a bias.
        eval_mask: "threshold" as published, "mean" for ``X * M``, "sample" to keep sampling.
        penalty: "squared", "linear", "entropy" or None.
        detach: whether the mask's gradient stops at its input.

    Shape:
        x: (batch, tokens, width); padding_mask: (batch, tokens), true at real tokens, past ones included
        when ``past`` remembers the keys and values of earlier tokens.

    Raises:
        InputError: for heads that do not divide the width, a shift outside [0, pi], an unknown word, and in
            the forward for a tensor without tokens.

    Paper: Yan 2024, "Learned Dropout".
    """

    shift: Tensor
    # Beside x it must be told which tokens are padding and, in cached decoding, what came before.
    looks_at_tokens = True

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        shift: float = 0.0,
        causal: bool = True,
        bias: bool = False,
        eval_mask: EvalMask = "threshold",
        penalty: PenaltyName | None = "squared",
        detach: bool = False,
    ) -> None:
        super().__init__()
        check_heads(width, heads)
        if not 0 <= shift <= math.pi:
            raise InputError(f"shift is {shift}, but it lies between 0 and pi (3.14159...).")
        check_choice(eval_mask, get_args(EvalMask), "eval_mask")
        if penalty is not None:
            check_choice(penalty, get_args(PenaltyName), "penalty")
        self.width, self.heads, self.causal = width, heads, causal
        self.eval_mask, self.penalty, self.detach = eval_mask, penalty, detach
        self.has_penalty = penalty is not None
        self.make_gate(bias)
        self.shift = nn.Parameter(torch.full((width,), float(shift)))

    def make_gate(self, bias: bool) -> None:
        """Make what ``gate`` computes with; a subclass with another gate makes its own."""
        self.qkv = drawn_linear(self.width, 3 * self.width, bias)

    def token_gate(self) -> TokenGate | None:
        """Return this mask as a decoder computes it, where it is causal, by threshold and not watched."""
        # A subclass has formulas of its own.
        return gate_by_threshold(self) if type(self) is LearnedDropout else None

    def mask_input(self, x: Tensor) -> Tensor:
        """Return the tensor that the mask is computed from."""
        return x.detach() if self.detach else x

    def gate(
        self,
        mask_input: Tensor,
        padding_mask: Tensor | None = None,
        past: functional.KeysAndValues | None = None,
    ) -> Tensor:
        """Return what attention mixes for each channel, before the cosine."""
        if mask_input.dim() != 3:
            raise InputError(
                f"{type(self).__name__} mixes tokens, so it takes (batch, tokens, width), not a tensor of "
                f"{tuple(mask_input.shape)}; where there are no tokens use LearnedPositionwiseDropout."
            )
        return functional.self_attention(
            self.qkv(mask_input), self.heads, causal=self.causal, padding_mask=padding_mask, past=past
        )

    def keep_probability(self, gate: Tensor) -> Tensor:
        """Return ``M``, the probability of keeping each element."""
        return functional.cosine_keep_probability(gate, self.shift)

    def forward(
        self,
        x: Tensor,
        padding_mask: Tensor | None = None,
        past: functional.KeysAndValues | None = None,
    ) -> Tensor:
        gate = self.gate(self.mask_input(x), padding_mask, past)
        if padding_mask is not None:
            # Of past and present tokens only the present ones are masked and counted.
            padding_mask = padding_mask[:, -x.shape[1] :]
        if self.in_one_pass(x, gate):
            key = draw_key(x.device) if self.training or self.eval_mask == "sample" else None
            penalty = self.penalty if self.training and self.penalty != "entropy" else None
            y, value = learned_mask(x, gate, self.shift, key=key, penalty=penalty, padding_mask=padding_mask)
        else:
            y, value = self.step_by_step(x, self.keep_probability(gate), padding_mask)
        if value is not None:
            self.store_penalty(value)
        return y

    def in_one_pass(self, x: Tensor, gate: Tensor) -> bool:
        """Return whether ``learned_mask`` makes the output, with little to compute and to keep for backward.

        It does in eager code where the mask is a 0/1 mask of the cosine. It does not where a subclass has
        formulas of its own, an observer asks for the probabilities, the penalty is the entropy, or a compiler
        or a function transform reads the operations.
        """
        return (
            self.observer is None
            and all(method_of(self, name) is method_of(LearnedDropout, name) for name in FORMULAS)
            and (self.penalty != "entropy" if self.training else self.eval_mask != "mean")
            and takes_learned_mask(x, gate, self.shift)
        )

    def step_by_step(
        self, x: Tensor, keep_probability: Tensor, padding_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return output and penalty from the plain formulas."""
        penalty = None
        if self.training and self.has_penalty:
            penalty = self.penalty_of(real_tokens(keep_probability, padding_mask))
        mask = self.mask(keep_probability).to(x.dtype)
        if self.observer is not None:
            self.observer(real_tokens(keep_probability, padding_mask), real_tokens(mask, padding_mask))
        return x * mask, penalty

    def penalty_of(self, keep_probability: Tensor) -> Tensor:
        """Return the penalty of the real tokens' ``M``."""
        assert self.penalty is not None
        return PENALTIES[self.penalty](keep_probability)

    def mask(self, keep_probability: Tensor) -> Tensor:
        """Return the mask of this mode: sampled in training, ``eval_mask`` in evaluation."""
        if self.training or self.eval_mask == "sample":
            return functional.sampled_mask(keep_probability)
        if self.eval_mask == "threshold":
            return functional.thresholded_mask(keep_probability)
        return keep_probability

    def extra_repr(self) -> str:
        return f"width={self.width}, heads={self.heads}, causal={self.causal}, eval_mask={self.eval_mask!r}"


def gate_by_threshold(layer: LearnedDropout, source: nn.Module | None = None) -> TokenGate | None:
    """Return a layer's mask of evaluation as a decoder computes it; None where its settings are others."""
    if (layer.eval_mask, layer.causal, layer.observer) != ("threshold", True, None):
        return None
    return TokenGate(layer=layer, qkv=layer.qkv, shift=layer.shift, heads=layer.heads, source=source)


def drawn_linear(inputs: int, outputs: int, bias: bool, std: float = 0.02) -> nn.Linear:
    """Return a linear layer with weights of N(0, std^2) and biases of 0."""
    linear = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(linear.weight, std=std)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear


def real_tokens(values: Tensor, padding_mask: Tensor | None) -> Tensor:
    """Leave padding tokens out, so that they count in no penalty and no statistic."""
    return values if padding_mask is None else values[padding_mask.bool()]
