"""The arms of each claim: ``python experiments/claims/configs.py`` writes ``CLAIM/configs/*.yaml``."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformer_dropout.runs.arm_names import folder_name
from transformer_dropout.yaml_file import dump_yaml

HERE = Path(__file__).parent
HIDDEN = ("embedding", "attention_output", "mlp_output")
TEXT = {"source": "stdlib-docs", "tokenizer": "bytes", "train_tokens": 10_000, "validation_tokens": 40_000}
STEPS = {"steps": 500, "batch": 16, "lr": 3e-3, "min_lr": 1e-4, "eval_every": 125, "weight_decay": 1.0}
FINE = {
    "steps": 150,
    "batch": 8,
    "lr": 3e-4,
    "min_lr": 0.0,
    "warmup_steps": 8,
    "weight_decay": 0.01,
    "beta2": 0.999,
    "precision": "bfloat16",
    "eval_every": 25,
    "eval_windows": 200,
    "probe_windows": 100,
}


def decoder(name: str, recipe: list[dict[str, Any]], *, width: int = 96, **changed: Any) -> dict[str, Any]:
    """Return a run config of the decoder on docstrings.

    Args:
        name: of the arm.
        recipe: its rules.
        width: of the decoder.
        changed: keys of its training, and ``train_tokens``.
    """
    tokens = changed.pop("train_tokens", TEXT["train_tokens"])
    return {
        "name": name,
        "task": "language",
        "model": {"width": width, "heads": 4, "blocks": 2, "context": 32},
        "recipe": recipe,
        "data": {**TEXT, "train_tokens": tokens},
        "training": {**STEPS, **changed},
    }


def dropout(p: float, attention: float | None = None, layer: str = "Dropout", **more: Any) -> list[dict]:
    """Return dropout at the hidden places, and at the attention weights; rules of rate 0 are left out."""
    places = [(place, p, layer, more) for place in HIDDEN]
    places.insert(1, ("attention_weights", p if attention is None else attention, "Dropout", {}))
    return [
        {"select": place, "layer": which, "p": rate, **own} for place, rate, which, own in places if rate > 0
    ]


def importance() -> Iterator[dict[str, Any]]:
    """Yield plain dropout and the three ways to say which unit is important."""
    yield decoder("none", [])
    yield decoder("dropout 0.1", dropout(0.1))
    for by in ("activity", "gradient", "redundancy"):
        yield decoder(f"by {by}", dropout(0.1, layer="ImportanceDropout", by=by))


def widths() -> Iterator[dict[str, Any]]:
    """Yield three widths with four rates each."""
    for width in (48, 96, 192):
        for p in (0.0, 0.1, 0.2, 0.3):
            yield decoder(f"width {width}, p {p:g}", dropout(p), width=width)


def shift() -> Iterator[dict[str, Any]]:
    """Yield the three shifts of LearnedDropout in runs of two lengths."""
    for steps in (500, 2000):
        for name, value in (("0", 0.0), ("pi/2", math.pi / 2), ("pi", math.pi)):
            rule = {
                "select": "mlp_output",
                "layer": "LearnedDropout",
                "heads": 4,
                "weight": 0.1,
                "shift": value,
            }
            length = {"steps": steps, "eval_every": steps // 4, "train_tokens": 20_000, "weight_decay": 0.1}
            yield decoder(f"shift {name}, {steps} steps", [rule], **length)


def gates() -> Iterator[dict[str, Any]]:
    """Yield LearnedDropout as published, and what has a part of it only."""
    own = {"weight": 0.1, "shift": math.pi / 2}
    layers = {
        "LearnedDropout": {"layer": "LearnedDropout", "heads": 4},
        "mask of another sequence": {"layer": "LearnedShuffledDropout", "heads": 4},
        "random mask of the same mean rates": {"layer": "LearnedMarginalDropout", "heads": 4},
        "gate that multiplies, no sampling": {"layer": "LearnedSoftGate", "heads": 4},
        "gate of the token alone": {"layer": "LearnedPositionwiseDropout"},
        "gate of rank 8": {"layer": "LearnedLowRankDropout", "rank": 8},
    }
    yield decoder("none", [], weight_decay=0.1)
    yield decoder("dropout 0.1", [{"select": "mlp_output", "layer": "Dropout", "p": 0.1}], weight_decay=0.1)
    for name, layer in layers.items():
        yield decoder(name, [{"select": "mlp_output", **layer, **own}], weight_decay=0.1)


def cosine() -> Iterator[dict[str, Any]]:
    """Yield LearnedDropout as published, and gates of another form."""
    own = {"select": "mlp_output", "heads": 4, "weight": 0.1, "shift": math.pi / 2}
    layers = {
        "LearnedDropout": {"layer": "LearnedDropout"},
        "Fourier series of 3 terms": {"layer": "LearnedFourierDropout", "terms": 3},
        "steep sigmoid": {"layer": "LearnedSigmoidDropout"},
        "steep sigmoid, straight-through": {"layer": "LearnedSigmoidStraightThrough"},
    }
    for name, layer in layers.items():
        yield decoder(name, [{**own, **layer}], weight_decay=0.1)


def unseen() -> Iterator[dict[str, Any]]:
    """Yield gates that learn from the training loss, and from what the weights do not see."""
    place = {"select": "mlp_output"}
    learned = {**place, "layer": "LearnedDropout", "heads": 4, "weight": 0.1, "shift": math.pi / 2}
    anchored = {**place, "heads": 4, "anchor_p": 0.1, "weight": 1.0}
    arms = {
        "none": ([], {}),
        "dropout 0.1": ([{**place, "layer": "Dropout", "p": 0.1}], {}),
        "LearnedDropout": ([learned], {}),
        "held-out gates": ([learned], {"held_out": 0.1}),
        "held-out gates, every fourth step": ([learned], {"held_out": 0.1, "held_out_every": 4}),
        "Anchored": ([{**anchored, "layer": "AnchoredDropout"}], {}),
        "cross-fitted gates": ([{**anchored, "layer": "CrossFittedDropout"}], {"cross_fit": True}),
    }
    for name, (recipe, changed) in arms.items():
        yield decoder(name, recipe, weight_decay=0.1, **changed)


def views() -> Iterator[dict[str, Any]]:
    """Yield R-Drop with other second views, all on the same dropout and weight decay."""
    usual, consistency = dropout(0.1), {"rdrop": 3.0}
    anchored = {"select": "mlp_output", "heads": 4, "anchor_p": 0.1, "weight": 1.0}
    yield decoder("dropout 0.1", usual)
    yield decoder("R-Drop", usual, **consistency)
    yield decoder("R-Drop, last block", usual, **consistency, rdrop_blocks=1)
    yield decoder("R-Drop, token noise", usual, **consistency, rdrop_view="token_noise", token_noise=0.05)
    for name, layer in (("learned", "AnchoredDropout"), ("adversarial", "AdversarialDropout")):
        recipe = [*usual[:-1], {**anchored, "layer": layer}]
        yield decoder(f"R-Drop, {name}", recipe, **consistency, rdrop_view=name)


def cheap_gates() -> Iterator[dict[str, Any]]:
    """Yield the best plain recipe, and learned masks of few FLOPs in the place of a part of it."""
    usual = dropout(0.1)
    own = {"rank": 8, "weight": 0.1, "shift": math.pi / 2}
    arms = {
        "dropout 0.1": {},
        "attention of rank 8": {"mlp_output": "LearnedLowRankDropout"},
        "token alone": {"mlp_output": "LearnedPositionwiseDropout"},
        "block's own attention": {"attention_output": "LearnedPositionwiseDropout"},
        "token alone and block's own attention": dict.fromkeys(
            ("mlp_output", "attention_output"), "LearnedPositionwiseDropout"
        ),
    }
    for name, layers in arms.items():
        yield decoder(
            name,
            [
                {"select": place, "layer": layers[place], **own}
                if (place := rule["select"]) in layers
                else rule
                for rule in usual
            ],
        )


def anchored() -> Iterator[dict[str, Any]]:
    """Yield dropout and gates that begin as it, behind the MLP, without and with R-Drop."""
    usual, consistency = dropout(0.1), {"rdrop": 3.0}
    gate = {"select": "mlp_output", "layer": "AnchoredDropout", "heads": 4, "anchor_p": 0.1, "weight": 1.0}
    gated = [*usual[:-1], gate]
    yield decoder("dropout 0.1", usual)
    yield decoder("Anchored", gated)
    yield decoder("R-Drop", usual, **consistency)
    yield decoder("R-Drop, Anchored", gated, **consistency, rdrop_view="learned")


def consistency() -> Iterator[dict[str, Any]]:
    """Yield R-Drop with other weights, other rates, and dropout at fewer places."""
    yield decoder("R-Drop", dropout(0.1), rdrop=3.0)
    for weight in (1.0, 10.0):
        yield decoder(f"weight {weight:g}", dropout(0.1), rdrop=weight)
    for p in (0.05, 0.2):
        yield decoder(f"p {p:g}", dropout(p), rdrop=3.0)
    for rule in dropout(0.1):
        others = [other for other in dropout(0.1) if other["select"] != rule["select"]]
        place = rule["select"].replace("_", " ").replace("mlp", "MLP")
        yield decoder(f"{place} alone", [rule], rdrop=3.0)
        yield decoder(f"not at the {place}", others, rdrop=3.0)


def relu() -> Iterator[dict[str, Any]]:
    """Yield ReLU in place of GELU without and with an L1 penalty, and both beside dropout."""

    def sparse(weight: float) -> dict[str, Any]:
        return {"select": "mlp_hidden", "layer": "SparseReLU", "weight": weight}

    yield decoder("GELU", [])
    yield decoder("ReLU", [sparse(0.0)])
    for weight in (0.005, 0.05):
        yield decoder(f"ReLU, L1 {weight:g}", [sparse(weight)])
    yield decoder("GELU, dropout 0.1", dropout(0.1))
    yield decoder("ReLU, L1 0.005, dropout 0.1", [*dropout(0.1), sparse(0.005)])


def bert_rates() -> Iterator[dict[str, Any]]:
    """Yield an encoder's hidden and attention rates, each on its own."""
    for hidden in (0.0, 0.1, 0.3):
        for attention in (0.0, 0.1, 0.3):
            recipe = dropout(hidden, attention)
            if hidden > 0:
                recipe.append({"select": "classifier", "layer": "Dropout", "p": hidden})
            yield {
                "name": f"hidden {hidden:g}, attention {attention:g}",
                "task": "sentences",
                "model": {"source": "runs/three_blocks"},
                "recipe": recipe,
                "data": {
                    "classes": {name: f"../shared/data/rt-polarity.{name}" for name in ("neg", "pos")},
                    "train_sentences": 200,
                },
                "training": dict(FINE),
            }


CLAIMS = {
    claim.__name__: claim
    for claim in (
        importance,
        widths,
        shift,
        gates,
        cheap_gates,
        anchored,
        cosine,
        unseen,
        views,
        consistency,
        relu,
        bert_rates,
    )
}


def files(claim: str) -> dict[Path, str]:
    """Return the files of a claim, with what stands in them."""
    arms = [json.loads(json.dumps(arm)) for arm in CLAIMS[claim]()]
    return {
        HERE / claim / "configs" / f"{folder_name(arm['name'], 'run')}.yaml": dump_yaml(arm) for arm in arms
    }


if __name__ == "__main__":
    for claim in CLAIMS:
        for path, text in files(claim).items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
