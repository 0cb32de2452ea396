"""Draw the figures of the pages and fill in their rows: ``python docs/make.py``.

Each figure shows what a layer does by running it under a fixed seed. The same torch gives the same bytes.
"""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import torch
from drawing import chart, charts, panels
from learned_figures import LEARNED_FIGURES, wide_weights
from torch import Tensor, nn

import transformer_dropout as td
from transformer_dropout.layers import DropoutLayer
from transformer_dropout.layers.precomputed import MaskEmbedding
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig

DOCS = Path(__file__).parent


# Running


def forwards(layer: DropoutLayer, x: Tensor, count: int, seed: int = 0) -> list[Tensor]:
    """Return the results of training forwards of one input."""
    torch.manual_seed(seed)
    with torch.no_grad():
        return [layer.train()(x) for _ in range(count)]


def by_sample(layer: DropoutLayer, caption: str, *, seed: int = 0, middle: float = 1.0) -> str:
    """Return two forwards of four samples, tokens down and channels across."""
    x = torch.full((4, 8, 16), middle)
    rows = [
        (f"forward {at}: four samples, tokens down, channels across", list(y))
        for at, y in enumerate(forwards(layer, x, 2, seed), start=1)
    ]
    return panels(rows, caption, middle)


def points(
    function: Callable[[float], float], low: float, high: float, count: int = 80
) -> list[tuple[float, float]]:
    """Return a function's values at equal distances."""
    places = [low + (high - low) * at / count for at in range(count + 1)]
    return [(place, float(function(place))) for place in places]


# Figures


def alpha_dropout() -> str:
    torch.manual_seed(0)
    x = torch.randn(4000)
    y = td.AlphaDropout(p=0.25).train()(x)
    flat = y[:300].sort().values.mode().values
    pairs = list(zip(x[:300].tolist(), y[:300].tolist(), strict=True))
    shown = {
        "kept": [pair for pair in pairs if abs(pair[1] - flat) > 1e-4],
        "dropped": [pair for pair in pairs if abs(pair[1] - flat) <= 1e-4],
    }
    words = f"p = 0.25: from mean {x.mean():.2f}, variance {x.var():.2f} to {y.mean():.2f} and {y.var():.2f}."
    return charts(chart(0, shown, ("x", "y"), dots=True), width=390, caption=words)


def concrete_dropout() -> str:
    def shares(temperature: float) -> list[tuple[float, float]]:
        torch.manual_seed(0)
        layer = td.ConcreteDropout(initial_p=0.25, temperature=temperature).train()
        mask = layer(torch.ones(40_000)).detach() * 0.75
        found = torch.histc(mask, bins=20, min=0, max=1) / 40_000
        return [((at + 0.5) / 20, share) for at, share in enumerate(found.tolist())]

    def penalty(p: float) -> float:
        layer = td.ConcreteDropout(initial_p=p).train()
        layer(torch.ones(1))
        return layer.take_penalty().item()

    masks = {f"temperature {t}": shares(t) for t in (0.1, 0.5, 1.0)}
    return charts(
        chart(0, masks, ("mask, p = 0.25", "share of elements")),
        chart(330, {"penalty": points(penalty, 0.01, 0.99)}, ("learned p", "nats")),
    )


def drop_head() -> str:
    weights = torch.ones(2, 4, 10, 10).tril()
    (dropped,) = forwards(td.DropHead(p=0.25), weights, 1, seed=1)
    rows = [
        (f"sample {at}: factors of the attention weights of four heads", list(sample))
        for at, sample in enumerate(dropped.masked_fill(weights == 0, math.inf), start=1)
    ]
    return panels(rows, "p = 0.25. Orange: 0. The heads that stay are scaled by heads / kept heads.")


def drop_key() -> str:
    hidden = torch.ones(10, 10).triu(1).bool()
    scores = torch.zeros(1, 4, 10, 10).masked_fill(hidden, -math.inf)
    (scored,) = forwards(td.DropKey(p=0.25), scores, 1)
    (after,) = forwards(td.Dropout(p=0.25), scores.softmax(-1), 1)
    rows = []
    for name, weights in (("DropKey, before", scored.softmax(-1)), ("Dropout, after", after)):
        sums = weights.sum(-1)
        words = f"{name} the softmax: rows sum to {sums.min():.2f} ... {sums.max():.2f}"
        even = weights * torch.arange(1, 11)[:, None]
        rows.append((words, list(even.masked_fill(hidden, math.inf)[0])))
    return panels(
        rows, "Four heads, p = 0.25. Pale: an even share of the keys in sight. Orange: 0. Blue: more."
    )


def importance_dropout() -> str:
    scales = torch.linspace(0.2, 3.0, 24).square()
    curves = {}
    for spread in (0.0, 0.4, 0.8):
        layer = td.ImportanceDropout(24, p=0.1, spread=spread, momentum=0.9)
        forwards(layer, torch.randn(64, 24, generator=torch.Generator().manual_seed(0)) * scales, 50)
        layer.set_rate(0.1)
        curves[f"spread {spread}"] = list(
            zip(layer.importance.tolist(), layer.unit_rates.tolist(), strict=True)
        )
    return charts(chart(0, curves, ("measured mean |x| of a unit", "rate"), dots=True))


def learned_dropout() -> str:
    layer = wide_weights(td.LearnedDropout(16, 4, shift=1.2))
    x = torch.ones(1, 10, 16) + torch.randn(1, 10, 16, generator=torch.Generator().manual_seed(1))
    masks = [(y / x)[0] for y in forwards(layer, x, 2)]
    with torch.no_grad():
        layer.eval()
        layer.eval_mask = "mean"
        means = (layer(x) / x)[0]
        layer.eval_mask = "threshold"
        masks += [means, (layer(x) / x)[0]]
    name = "tokens down, channels across: two training masks; M itself; the mask in evaluation"
    return panels([(name, masks)], "Pale: 1, kept. Orange: 0. Between them: M, the probability of keeping.")


def precomputed() -> str:
    torch.manual_seed(0)
    source = wide_weights(MaskEmbedding(16, 4))
    layers = [
        wide_weights(td.PrecomputedLearnedDropout(16, 4, source=source, shift=1.2, eval_mask="mean"))
        for _ in range(2)
    ]
    with torch.no_grad():
        layers[1].qkv.weight.mul_(-1)
        source(torch.randn(1, 10, 16))
        inputs = [torch.randn(1, 10, 16) for _ in range(2)]
        shown = [(layer.eval()(x) / x)[0] for layer in layers for x in inputs]
    name = "M, tokens down, channels across: block 1 on two inputs, block 2 on the same two"
    return panels([(name, shown)], "The embeddings decide, not the block's input: each pair is equal.")


def standout() -> str:
    layer = wide_weights(td.Standout(16))
    x = torch.randn(10, 16, generator=torch.Generator().manual_seed(1))
    masks = [y / x for y in forwards(layer, x, 2)]
    with torch.no_grad():
        masks.append(layer.eval()(x) / x)
    name = "tokens down, units across: two training masks; the factor in evaluation"
    return panels([(name, masks)], "Pale: 1. Orange: 0. Between them: the probability of keeping.")


def schedules() -> str:
    over_time = {
        "Linear": td.Linear(0.3, 0.0),
        "Cosine": td.Cosine(0.3, 0.0),
        "Exponential": td.Exponential(0.3, 0.0, rate=-5.0),
        "Early, linear": td.Early(0.3, 1 / 6, linear=True),
        "Late": td.Late(0.3, 1 / 6),
        "Curriculum": td.Curriculum(0.3),
        "Piecewise": td.parse_schedule("0,0@0.2,0.3@0.5,0"),
    }
    over_depth = {
        "lima(0.3)": td.recipes.lima(0.3),
        "layerwise(12)": td.recipes.layerwise(12),
        "... falling": td.recipes.layerwise(12, falling=True),
    }
    curves = {name: points(schedule, 0, 1, 120) for name, schedule in over_time.items()}
    rates = {name: rates_of(recipe) for name, recipe in over_depth.items()}
    return charts(
        chart(0, curves, ("progress of training", "p")), chart(330, rates, ("block", "p"), dots=True)
    )


def rates_of(recipe: td.Recipe) -> list[tuple[float, float]]:
    """Return the rate that each block of a decoder gets at its MLP's output."""
    model = Decoder(16, DecoderConfig(width=8, heads=2, blocks=12, context=8))
    placed = td.regularize_(model, recipe).placed
    return [(part.site.block or 0, part.layer.p) for part in placed if part.site.kind == "mlp_output"]


def penalties() -> str:
    best = torch.linspace(-1, 1, 41)
    start = torch.full((41, 1), 0.5)

    def fitted(penalty: Callable[[nn.Linear], Callable[[], Tensor]] | None) -> list[tuple[float, float]]:
        model = nn.Linear(1, 41, bias=False)
        model.weight.data.copy_(start)
        term = penalty(model) if penalty else None
        for _ in range(400):
            loss = (model.weight[:, 0] - best).square().sum() / 2 + (term() if term else 0.0)
            (gradient,) = torch.autograd.grad(loss, model.weight)
            model.weight.data.sub_(0.05 * gradient)
            if term is None:
                td.proximal_l1_([model.weight], 0.3, lr=0.05)
        return list(zip(best.tolist(), model.weight[:, 0].tolist(), strict=True))

    curves = {
        "proximal_l1_": fitted(None),
        "L2": fitted(lambda model: td.L2(model, 0.3)),
        "ElasticNet": fitted(lambda model: td.ElasticNet(model, 0.3)),
        "L2SP, w0 = 0.5": fitted(lambda model: td.L2SP(model, 0.3)),
    }
    return charts(chart(0, curves, ("weight without penalty", "weight"), dots=True), width=345)


def mixout() -> str:
    model = nn.Linear(16, 10, bias=False)
    start = {"weight": torch.zeros(10, 16)}
    nn.init.ones_(model.weight)
    td.mixout_(model, 0.5, pretrained=start)
    torch.manual_seed(0)
    with torch.no_grad():
        shown = [model.train()(torch.eye(16)).T for _ in range(3)] + [model.eval()(torch.eye(16)).T]
    name = "one weight matrix in three training forwards and in evaluation"
    return panels(
        [(name, shown)], "p = 0.5. Orange: the pre-trained value. Pale: the trained one. Blue: twice as far."
    )


def neftune() -> str:
    def size(tokens: int, alpha: float) -> Tensor:
        torch.manual_seed(0)
        return td.neftune_noise(torch.zeros(1, tokens, 64), alpha)

    lengths = [8, 16, 24, 32, 48, 64, 96, 128, 192, 256]
    norms = {f"alpha {a}": [(n, size(n, a).norm().item()) for n in lengths] for a in (5, 10, 15)}
    largest = {f"alpha {a}": [(n, size(n, a).abs().max().item()) for n in lengths] for a in (5, 10, 15)}
    return charts(
        chart(0, norms, ("tokens of a text", "norm of a text's noise")),
        chart(330, largest, ("tokens of a text", "largest noise on one element")),
    )


def losses() -> str:
    def loss(p: float, weight: float) -> float:
        first, second = (torch.tensor([[q, 1 - q]]).log() for q in (0.9, p))
        return td.rdrop_loss(first, second, torch.tensor([0]), weight).item()

    curves = {f"weight {w}": points(lambda p, w=w: loss(p, w), 0.3, 0.99) for w in (0, 1, 5)}
    return charts(chart(0, curves, ("the second forward's p", "loss, nats")))


FIGURES: dict[str, Callable[[], str]] = LEARNED_FIGURES | {
    "alpha_dropout": alpha_dropout,
    "concrete_dropout": concrete_dropout,
    "drop_head": drop_head,
    "drop_key": drop_key,
    "drop_path": lambda: by_sample(td.DropPath(p=0.25), "p = 0.25. Orange: 0. Blue: 1 / (1 - p).", seed=1),
    "dropout": lambda: by_sample(td.Dropout(p=0.25), "p = 0.25. Orange: 0. Blue: 1 / (1 - p)."),
    "gaussian_dropout": lambda: by_sample(
        td.GaussianDropout(p=0.25), "p = 0.25. Pale: 1. Orange: less. Blue: more."
    ),
    "gaussian_noise": lambda: by_sample(
        td.GaussianNoise(0.5), "std = 0.5. What is added: orange below 0, blue above.", middle=0.0
    ),
    "importance_dropout": importance_dropout,
    "layer_drop": lambda: by_sample(
        td.LayerDrop(p=0.5), "p = 0.5. Orange: 0, the block is left out. Pale: 1, as it is."
    ),
    "learned_dropout": learned_dropout,
    "losses": losses,
    "mixout": mixout,
    "neftune": neftune,
    "penalties": penalties,
    "precomputed": precomputed,
    "schedules": schedules,
    "standout": standout,
    "token_dropout": lambda: by_sample(td.TokenDropout(p=0.25), "p = 0.25. Orange: 0. Blue: 1 / (1 - p)."),
}


# Rows


def with_rows(words: str) -> str:
    """Return a page whose evidence is what the records say about the arms that its markers name."""
    return re.sub(r"<!-- from (\S+): (.+?) -->\n.*?<!-- end -->", filled, words, flags=re.DOTALL)


def filled(marker: re.Match) -> str:
    """Return a marker, the rows of the arms it names, a sentence on each, and its end."""
    record, arms = DOCS.parent / marker[1], marker[2].split("; ")
    blocks = (record / "table.md").read_text(encoding="utf-8").split("\n\n")
    table = next(block for block in blocks if block.startswith("| arm ")).splitlines()
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in table[2:]}
    chosen = [*table[:2], *(rows[arm] for arm in arms)]
    return "\n".join([marker[0].splitlines()[0], *chosen, "", *sentences(record, arms), "<!-- end -->"])


def sentences(record: Path, arms: list[str]) -> list[str]:
    """Return what each arm did against no regularizer, if that was recorded, and against the reference."""
    summary = json.loads((record / "summary.json").read_text(encoding="utf-8"))
    found = {arm["arm"]: arm for arm in summary["arms"]}
    reference, told = summary["reference"]["name"], []
    for arm in arms:
        # What plain dropout did is told on its own page.
        if arm == "none" or (arm == reference and arm != arms[-1]):
            continue
        words = [] if arm == reference else [found[arm]["text"]]
        if "none" in found:
            words.insert(0, against_none(found[arm]["val_loss_by_seed"], found["none"]["val_loss_by_seed"]))
        told.append(f"* {arm}: {'; '.join(words)}.")
    return told


def against_none(losses: dict[str, float], without: dict[str, float]) -> str:
    """Return where losses end beside those of no regularizer, seed by seed."""
    changes = [losses[seed] - without[seed] for seed in losses]
    mean = sum(changes) / len(changes)
    side, seeds = ("above" if mean > 0 else "below"), sum(change * mean > 0 for change in changes)
    return (
        f"validation ends {abs(mean):.3f} nats {side} no regularizer, {side} it at {seeds} of "
        f"{len(changes)} seeds"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for figure, draw in FIGURES.items():
        (DOCS / "figures" / f"{figure}.svg").write_text(draw(), encoding="utf-8")
    for file in sorted(DOCS.rglob("*.md")):
        before = file.read_text(encoding="utf-8")
        if with_rows(before) != before:
            file.write_text(with_rows(before), encoding="utf-8")
