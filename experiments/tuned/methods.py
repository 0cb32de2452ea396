"""The methods that are tuned against each other, and what is searched for each."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Rules = list[dict[str, Any]]
BLOCK = ("embedding", "attention_weights", "attention_output", "mlp_output")

DECAY = {"training.weight_decay": {"low": 0.01, "high": 10.0, "log": True}}
RATE = {"low": 0.0, "high": 0.6}
WEIGHT = {"low": 0.001, "high": 1.0, "log": True}
SHIFTS = [0.0, math.pi / 2, math.pi]
# A pre-trained model that loses half of its units at the first step has lost what it came with.
FINE_SHIFTS = [0.3, math.pi / 2]


@dataclass(frozen=True, kw_only=True)
class Method:
    """One arm of a setting.

    Attributes:
        name: in tables.
        recipe: its rules, with any values where they are searched.
        searched: its own settings, beside the learning rate.
        data, training: what it has beside the setting's.
    """

    name: str
    recipe: Rules = field(default_factory=list)
    searched: Mapping[str, Any] = field(default_factory=lambda: dict(DECAY))
    data: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


def rules(places: Sequence[str], layer: str = "Dropout", **arguments: Any) -> Rules:
    """Return the same layer at several places."""
    return [{"select": place, "layer": layer, **arguments} for place in places]


def plain(places: Sequence[str], half: Mapping[str, Any]) -> list[Method]:
    """Return the methods that any model can have.

    Args:
        places: where dropout acts.
        half: the keys of a training of half the steps.
    """
    every, dropout = {"recipe.*.p": RATE, **DECAY}, rules(places, p=0.1)
    rdrop = {**every, "training.rdrop": {"low": 0.3, "high": 6.0, "log": True}}
    return [
        Method(name="none", searched={}, training={"weight_decay": 0.0}),
        Method(name="weight decay"),
        Method(name="dropout", recipe=dropout, searched={"recipe.*.p": RATE}, training={"weight_decay": 0.0}),
        Method(name="dropout + weight decay", recipe=dropout, searched=every),
        Method(
            name="dropout by place",
            recipe=dropout,
            searched={**{f"recipe.{place}.p": RATE for place in range(len(places))}, **DECAY},
        ),
        *scheduled(places),
        Method(name="R-Drop", recipe=dropout, searched=rdrop, training={"rdrop": 1.0}),
        Method(
            name="R-Drop, half the steps", recipe=dropout, searched=rdrop, training={"rdrop": 1.0, **half}
        ),
        Method(
            name="label smoothing",
            searched={"training.label_smoothing": {"low": 0.0, "high": 0.4}, **DECAY},
            training={"label_smoothing": 0.1},
        ),
        Method(
            name="averaged weights",
            searched={"training.ema": [0.9, 0.97, 0.99, 0.997], **DECAY},
            training={"ema": 0.99},
        ),
        Method(
            name="SelfTuned",
            recipe=dropout,
            searched={
                "recipe.*.p": {"low": 0.05, "high": 0.6},
                "training.self_tuned.step": {"low": 0.03, "high": 0.3, "log": True},
                **DECAY,
            },
            training={"self_tuned": {"share": 0.1, "every": 10}},
        ),
    ]


def scheduled(places: Sequence[str]) -> list[Method]:
    """Return dropout that rises, falls or comes late."""
    return [
        Method(
            name="rising dropout",
            recipe=rules(places, p={"linear": {"start": 0.0, "end": 0.1}}),
            searched={"recipe.*.p.linear.end": RATE, **DECAY},
        ),
        Method(
            name="falling dropout",
            recipe=rules(places, p={"linear": {"start": 0.1, "end": 0.0}}),
            searched={"recipe.*.p.linear.start": RATE, **DECAY},
        ),
        Method(
            name="late dropout",
            recipe=rules(places, p={"late": {"p": 0.1, "start": 0.2}}),
            searched={
                "recipe.*.p.late.p": RATE,
                "recipe.*.p.late.start": {"low": 0.1, "high": 0.7},
                **DECAY,
            },
        ),
    ]


def of_mask(shifts: Sequence[float]) -> dict[str, Any]:
    """Return what is searched for every learned mask beside learning rate and the penalty's weight."""
    return {
        "recipe.*.shift": list(shifts),
        "recipe.*.penalty": ["squared", "linear"],
        "recipe.*.eval_mask": ["threshold", "mean"],
        **DECAY,
    }


def learned(name: str, recipe: Rules, shifts: Sequence[float] = SHIFTS, **training: Any) -> Method:
    """Return a learned mask whose penalty's weight, shift, penalty and evaluation are searched."""
    searched = {"recipe.*.weight": WEIGHT, **of_mask(shifts)}
    if "held_out" in training:
        searched["training.held_out"] = [0.1, 0.2]
    return Method(name=name, recipe=recipe, searched=searched, training=training)


def sparse_relu(places: Sequence[str]) -> Method:
    """Return ReLU with L1 on the hidden units."""
    searched = {"recipe.*.weight": {"low": 0.001, "high": 10.0, "log": True}, **DECAY}
    return Method(name="ReLU with L1", recipe=rules(places, "SparseReLU", weight=0.01), searched=searched)


def moved_images() -> Method:
    """Return shifts and crops of the training images."""
    return Method(
        name="shifts and crops",
        data={"augment": {"shift": 1, "crop": 0.0}},
        searched={"data.augment.shift": [0, 1, 2], "data.augment.crop": {"low": 0.0, "high": 0.4}, **DECAY},
    )


def of_perceptron() -> list[Method]:
    """Return the methods of the perceptron: those that need no tokens and no blocks."""
    hidden = ("mlp_hidden", "classifier")
    gate = {"layer": "LearnedPositionwiseDropout", "weight": 0.1}
    return [
        *plain(("input", *hidden), {"steps": 200, "eval_every": 40}),
        moved_images(),
        learned("learned mask", rules(hidden, **gate)),
        learned("learned mask, everywhere", rules(("input", *hidden), **gate)),
        learned("learned mask, held-out gates", rules(hidden, **gate), held_out=0.1),
        sparse_relu(hidden),
    ]


def of_blocks(
    output: str, everywhere: Sequence[str], shifts: Sequence[float] = SHIFTS, **gate: Any
) -> list[Method]:
    """Return the methods that need tokens and blocks.

    Args:
        output: where a learned mask acts as published.
        everywhere: all its places.
        shifts: where its masks may begin.
        gate: arguments of every learned mask.
    """
    anchored = {
        "recipe.*.weight": {"low": 0.01, "high": 10.0, "log": True},
        "recipe.*.anchor_p": {"low": 0.02, "high": 0.5},
        "recipe.*.lr_scale": [0.1, 1.0],
        **DECAY,
    }
    deep = {"select": "block", "layer": "DropPath", "p": 0.1, "depth": {"linear": {"start": 0.0, "end": 1.0}}}

    def mask(layer: str, places: Sequence[str] = (output,), weight: Any = 0.1, **more: Any) -> Rules:
        return rules(places, layer, weight=weight, **gate, **more)

    def scheduled(name: str, kind: str, **shape: Any) -> Method:
        ends = {"start": 0.0, "end": 0.1, **shape}
        searched = {f"recipe.*.weight.{kind}.end": WEIGHT, **of_mask(shifts)}
        return Method(name=name, recipe=mask("LearnedDropout", weight={kind: ends}), searched=searched)

    return [
        Method(name="stochastic depth", recipe=[deep], searched={"recipe.0.p": RATE, **DECAY}),
        learned("LearnedDropout", mask("LearnedDropout"), shifts),
        scheduled("LearnedDropout, penalty rising", "linear"),
        scheduled("LearnedDropout, penalty exponential", "exponential", rate=5.0),
        learned("LearnedDropout, everywhere", mask("LearnedDropout", everywhere), shifts),
        learned("LearnedDropout, held-out gates", mask("LearnedDropout"), shifts, held_out=0.1),
        learned("Fourier", mask("LearnedFourierDropout", terms=3), shifts),
        Method(name="Anchored", recipe=mask("AnchoredDropout", anchor_p=0.1), searched=anchored),
    ]


def experts() -> Method:
    """Return experts in place of each MLP."""
    searched = {
        "training.experts.weight": {"low": 0.001, "high": 0.1, "log": True},
        "training.experts.experts": [2, 4],
    }
    training = {"experts": {"experts": 4, "top_k": 1, "weight": 0.01}}
    return Method(name="experts", searched={**searched, **DECAY}, training=training)


def token_noise() -> Method:
    """Return random tokens in place of some."""
    searched = {"training.token_noise": {"low": 0.0, "high": 0.2}, **DECAY}
    return Method(name="token noise", searched=searched, training={"token_noise": 0.05})


def precomputed(shifts: Sequence[float] = SHIFTS, **gate: Any) -> Method:
    """Return masks of all blocks that are computed from the embeddings."""
    recipe = rules(("mlp_output",), "PrecomputedLearnedDropout", **gate, weight=0.1)
    return learned("pre-computed masks", recipe, shifts)


def of_vision_transformer() -> list[Method]:
    """Return the methods of the vision transformer."""
    places = ("embedding", "attention_output", "mlp_hidden", "mlp_output")
    return [
        *plain(places, {"steps": 200, "eval_every": 40}),
        moved_images(),
        *of_blocks("mlp_output", places[1::2], heads=4, causal=False),
        experts(),
        sparse_relu(("mlp_hidden",)),
    ]


def of_text() -> list[Method]:
    """Return the methods of the decoder."""
    moved = {"data.augment.swap": {"low": 0.0, "high": 0.2}, "data.augment.crop": {"low": 0.0, "high": 0.5}}
    return [
        *plain(BLOCK, {"steps": 250, "eval_every": 125}),
        token_noise(),
        Method(
            name="swapped and cropped text",
            searched={**moved, **DECAY},
            data={"augment": {"swap": 0.05, "crop": 0.2}},
        ),
        *of_blocks("mlp_output", ("attention_output", "mlp_output"), heads=4),
        experts(),
        precomputed(heads=4),
        sparse_relu(("mlp_hidden",)),
    ]


def of_fine_tuning(places: Sequence[str], half: Mapping[str, Any], heads: int) -> list[Method]:
    """Return the methods of a pre-trained model, whose MLPs are neither cut into experts nor given a ReLU."""
    dropout = rules(places, p=0.1)
    pull = {"training.l2_sp": {"low": 0.001, "high": 1.0, "log": True}, "recipe.*.p": RATE}
    return [
        *plain(places, half),
        token_noise(),
        Method(name="L2-SP", recipe=dropout, searched={**pull, **DECAY}, training={"l2_sp": 0.01}),
        *of_blocks("mlp_output", ("attention_output", "mlp_output"), FINE_SHIFTS, heads=heads),
        precomputed(FINE_SHIFTS, heads=heads),
    ]
