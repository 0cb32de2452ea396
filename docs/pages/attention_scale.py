"""Why attention divides its scores by the root of the head width: what a softmax does without it."""

import math

import torch
import torch.nn.functional as F
from drawing import chart, charts
from torch import Tensor, nn

import transformer_dropout as td

WIDTHS = (4, 16, 64, 256)
TOKENS, DRAWS = 32, 200
STEPS = 300


def weights_of(scores: Tensor) -> dict[str, float]:
    """Return what a softmax makes of scores: its largest weight, its entropy, and the size of its slopes."""
    weights = scores.softmax(-1)
    # The Jacobian of a softmax is diag(w) - w w^T; this is the mean of its trace.
    slopes = (weights * (1 - weights)).sum(-1).mean().item()
    entropy = torch.special.entr(weights).sum(-1).mean().item()
    return {
        "std": scores.std().item(),
        "largest": weights.amax(-1).mean().item(),
        "entropy": entropy,
        "slopes": slopes,
    }


def at_random(width: int, *, root: bool) -> dict[str, float]:
    """Return the same for queries and keys of independent entries with variance 1."""
    torch.manual_seed(0)
    query, key = torch.randn(2, DRAWS, TOKENS, width)
    scores = query @ key.transpose(-2, -1)
    return weights_of(scores / math.sqrt(width) if root else scores)


class Lookup(nn.Module):
    """One attention whose query names the token to be returned; entries of variance 1 at the start.

    Args:
        width: of its head.
        root: whether scores are divided by the root of the width.
    """

    def __init__(self, width: int, *, root: bool) -> None:
        super().__init__()
        self.scale = width**-0.5 if root else 1.0
        self.query, self.key = nn.Embedding(TOKENS, width), nn.Embedding(TOKENS, width)

    def scores(self) -> Tensor:
        return self.query.weight @ self.key.weight.T * self.scale


def learned(width: int, *, root: bool) -> list[tuple[float, float]]:
    """Return the loss over the steps of learning to look up one's own token, by plain gradient descent."""
    torch.manual_seed(0)
    model = Lookup(width, root=root)
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    curve = []
    for step in range(STEPS + 1):
        weights = model.scores().softmax(-1)
        # The mean square of what is read, as behind an attention: no logarithm that would undo the softmax.
        loss = (weights - torch.eye(TOKENS)).square().sum(-1).mean()
        curve.append((float(step), loss.item()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return curve


def gate_spread(width: int, heads: int) -> tuple[float, float]:
    """Return how far LearnedDropout's probabilities spread over tokens, with the root and without it."""
    torch.manual_seed(0)
    layer = td.LearnedDropout(width, heads, shift=math.pi / 2)
    # As large as entries of variance 1 make it, which training may come to.
    nn.init.normal_(layer.qkv.weight, std=width**-0.5)
    x = torch.randn(8, TOKENS, width)
    query, key, value = layer.qkv(x).view(8, TOKENS, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    found = []
    with torch.no_grad():
        for scale in (None, 1.0):
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
            keep = layer.keep_probability(mixed.transpose(1, 2).flatten(2))
            found.append(keep[:, TOKENS // 2 :].std(dim=1).mean().item())
    return found[0], found[1]


def measure() -> dict:
    """Return softmaxes with and without the root, what is learned through each, and what masks become."""
    return {
        "random": {(width, root): at_random(width, root=root) for width in WIDTHS for root in (True, False)},
        "learned": {
            "with the root": learned(64, root=True),
            "without": learned(64, root=False),
        },
        "gate": gate_spread(256, 4),
    }


def table(found: dict) -> str:
    """Return a line for each width, with the root and without."""
    lines = [
        "| d | scores divided by | std of the scores | largest weight | entropy | trace of the slopes |",
        "|---|---|---|---|---|---|",
    ]
    for (width, root), row in found["random"].items():
        numbers = " | ".join(f"{value:.2f}" for value in row.values())
        lines.append(f"| {width} | {'sqrt(d)' if root else '1'} | {numbers} |")
    ends = {name: curve[-1][1] for name, curve in found["learned"].items()}
    with_root, without = found["gate"]
    lines += [
        "",
        f"Loss of the lookup at d = 64 after {STEPS} steps: {ends['with the root']:.2f} with the root, "
        f"{ends['without']:.2f} without.",
        "",
        f"Spread of LearnedDropout's probabilities over tokens, heads of 64: {with_root:.2f} with the root, "
        f"{without:.2f} without.",
    ]
    return "\n".join(lines)


def figure(found: dict) -> str:
    """Return the largest weight over the width, and what is learned over the steps."""
    largest = {
        name: [(math.log2(width), found["random"][width, root]["largest"]) for width in WIDTHS]
        for name, root in (("with the root", True), ("without", False))
    }
    every = {name: curve[::10] for name, curve in found["learned"].items()}
    return charts(
        chart(0, largest, ("log2 d", "largest weight of 32")),
        chart(360, every, ("step", "loss of the lookup")),
        width=360,
    )
