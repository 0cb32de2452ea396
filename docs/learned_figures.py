"""The figures of the learned masks beside LearnedDropout, for ``make.py``."""

from collections.abc import Callable
from typing import TypeVar

import torch
from drawing import chart, charts, panels
from torch import Tensor, nn

import transformer_dropout as td
from transformer_dropout.layers.anchored_dropout import bernoulli_divergence
from transformer_dropout.layers.fourier_dropout import fourier_keep_probability
from transformer_dropout.layers.sigmoid_dropout import sigmoid_mask

Kind = TypeVar("Kind", bound=nn.Module)
Curve = list[tuple[float, float]]
MASKS = "Pale: 1, kept. Orange: 0. Between them: M, the probability of keeping."


def wide_weights(module: Kind, std: float = 0.5) -> Kind:
    """Draw matrices as large as training makes them, so that masks depend on the input."""
    torch.manual_seed(3)
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=std)
    return module


def inputs(batch: int = 1) -> Tensor:
    return torch.ones(batch, 10, 16) + torch.randn(batch, 10, 16, generator=torch.Generator().manual_seed(1))


def curve(function: Callable[[Tensor], Tensor], low: float, high: float, count: int = 80) -> Curve:
    """Return a function's values at equal distances."""
    at = torch.linspace(low, high, count + 1)
    return list(zip(at.tolist(), function(at).tolist(), strict=True))


@torch.no_grad()
def masks_of(layer: td.layers.LearnedDropout) -> str:
    """Return two training masks, M and the mask of evaluation."""
    x = inputs()
    torch.manual_seed(0)
    shown = [(layer.train()(x) / x)[0] for _ in range(2)]
    shown += [layer.keep_probability(layer.gate(x))[0], (layer.eval()(x) / x)[0]]
    name = "tokens down, channels across: two training masks; M itself; the mask in evaluation"
    return panels([(name, shown)], MASKS)


def fourier_dropout() -> str:
    def series(terms: int) -> Curve:
        return curve(
            lambda u: fourier_keep_probability(
                u[:, None], torch.full((terms, 1), 0.5), torch.full((terms, 1), 1 / terms)
            )[:, 0],
            -4,
            4,
        )

    curves = {f"{terms} term{'s' * (terms > 1)}": series(terms) for terms in (1, 2, 4)}
    return charts(chart(0, curves, ("gate u, every shift 0.5", "M")))


def sigmoid_dropout() -> str:
    curves = {f"slope {s}": curve(lambda m, s=s: sigmoid_mask(m, s), 0, 1) for s in (6, 20, 60)}
    return charts(chart(0, curves, ("M", "mask")))


def sigmoid_straight_through() -> str:
    def slope_of(m: Tensor) -> Tensor:
        mask = sigmoid_mask(m, 60)
        return 60 * mask * (1 - mask)

    curves = {
        "of the formula, slope 60": curve(slope_of, 0, 1),
        "straight through": curve(torch.ones_like, 0, 1),
    }
    return charts(chart(0, curves, ("M", "gradient of the mask")))


def anchored_dropout() -> str:
    def bias(factor: Callable[[Tensor, Tensor], Tensor]) -> Curve:
        """Return how far a gradient's mean is from the true one, for the loss (m + 1)^3, as a share."""

        def share(keep: Tensor) -> Tensor:
            drawn = torch.tensor([0.0, 1.0])[:, None]
            slope, chance = 3 * (drawn + 1) ** 2, torch.where(drawn > 0, keep, 1 - keep)
            return ((chance * factor(chance, keep) * slope).sum(0) - 7).abs() / 7

        return curve(share, 0.02, 0.98)

    anchors = {
        f"p = {p}": [
            (m, bernoulli_divergence(torch.tensor([m]), p).item()) for m, _ in curve(torch.abs, 0, 1, 40)
        ]
        for p in (0.1, 0.25, 0.5)
    }
    gradients = {
        "straight through": bias(lambda chance, keep: torch.ones_like(chance)),
        "g / (2 P(m))": bias(lambda chance, keep: 0.5 / chance),
    }
    return charts(
        chart(0, anchors, ("M", "penalty, nats")),
        chart(330, gradients, ("M, for a loss (m + 1)^3", "relative bias")),
    )


@torch.no_grad()
def cross_fitted_dropout() -> str:
    layer = wide_weights(td.CrossFittedDropout(16, 2, anchor_p=0.25))
    x = inputs().repeat(2, 1, 1)
    first, second = layer.keep_probability(layer.gate(x))
    shown = [first, second, layer.eval().keep_probability(layer.gate(x))[0]]
    name = "tokens down, channels across: M of each gate for one sequence; their mean, in evaluation"
    return panels([(name, shown)], MASKS)


def adversarial_dropout() -> str:
    layer = wide_weights(td.AdversarialDropout(16, 4, anchor_p=0.25), std=0.1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    x, shown = inputs(4), []
    for step in range(81):
        torch.manual_seed(step % 2)
        y = layer.train()(x)
        if step in (0, 80):
            shown.append((y / x)[0].detach() * 0.75)
        loss = (y[..., 4] - x[..., 4] / 0.75).square().mean() + 0.2 * layer.take_penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    name = "tokens down, channels across: before, and after it has found that the task needs channel 5"
    return panels([(name, shown)], "Pale: kept. Orange: dropped. anchor_p = 0.25.")


@torch.no_grad()
def soft_gate() -> str:
    soft, hard = (wide_weights(kind(16, 4, shift=1.2)) for kind in (td.LearnedSoftGate, td.LearnedDropout))
    x = inputs()
    torch.manual_seed(0)
    name = "tokens down, channels across: what the gate multiplies by; a mask drawn from it"
    return panels([(name, [(layer.train()(x) / x)[0] for layer in (soft, hard)])], MASKS)


@torch.no_grad()
def shuffled_dropout() -> str:
    layer = wide_weights(td.LearnedShuffledDropout(16, 4, shift=1.2, eval_mask="mean")).eval()
    x = inputs(3)
    gate = td.LearnedDropout.gate(layer, x)
    rows = [
        ("M of three sequences, tokens down, channels across", list(layer.keep_probability(gate))),
        ("what the same three are multiplied by in evaluation", list(layer(x) / x)),
    ]
    return panels(rows, "Pale: 1. Orange: 0. Each sequence has the mask of the next one.")


@torch.no_grad()
def marginal_dropout() -> str:
    layer = wide_weights(td.LearnedMarginalDropout(16, 4, shift=1.2))
    layer.shift.copy_(torch.linspace(0.2, 2.6, 16))
    x = inputs(16)
    for _ in range(300):
        layer.train()(x)
        layer.set_progress(0.0)
    torch.manual_seed(0)
    shown = [layer.keep_probability(layer.gate(x))[0], *[(layer(x) / x)[0] for _ in range(2)]]
    name = "tokens down, channels across: M of a gate; two training masks at its mean rates"
    return panels([(name, shown)], MASKS)


def sparse_relu() -> str:
    def of(units: Tensor) -> Tensor:
        return td.SparseReLU()(nn.functional.gelu(units))

    curves = {"behind a ReLU": curve(td.SparseReLU(), -3, 3), "behind a GELU": curve(of, -3, 3)}
    return charts(chart(0, curves, ("hidden unit before its activation", "output, and its penalty")))


LEARNED_FIGURES: dict[str, Callable[[], str]] = {
    "adversarial_dropout": adversarial_dropout,
    "anchored_dropout": anchored_dropout,
    "cross_fitted_dropout": cross_fitted_dropout,
    "fourier_dropout": fourier_dropout,
    "low_rank_dropout": lambda: masks_of(wide_weights(td.LearnedLowRankDropout(16, 2, shift=1.2), std=0.8)),
    "marginal_dropout": marginal_dropout,
    "positionwise_dropout": lambda: masks_of(
        wide_weights(td.LearnedPositionwiseDropout(16, shift=1.2), std=0.2)
    ),
    "shuffled_dropout": shuffled_dropout,
    "sigmoid_dropout": sigmoid_dropout,
    "sigmoid_straight_through": sigmoid_straight_through,
    "soft_gate": soft_gate,
    "sparse_relu": sparse_relu,
}
