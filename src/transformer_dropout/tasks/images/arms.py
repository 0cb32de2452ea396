"""The arms of ``dropout compare --task images`` without arguments.

Few images and many passes over them, so that a perceptron learns all of them by heart.
"""

from typing import Any

Rules = list[dict[str, Any]]


def rate(select: str, p: float) -> dict[str, Any]:
    """Return the rule of plain dropout at one kind of place."""
    return {"select": select, "layer": "Dropout", "p": p}


# All hidden units: the last linear layer reads the last of them.
HIDDEN = [rate("mlp_hidden", 0.5), rate("classifier", 0.5)]


def arm(name: str, recipe: Rules, *, weight_decay: float = 0.01, **augment: Any) -> dict[str, Any]:
    """Return one arm; all share model, images, length and learning rate."""
    return {
        "name": name,
        "recipe": recipe,
        "data": {"train_images": 300, "augment": augment},
        "training": {
            "steps": 1000,
            "batch": 32,
            "lr": 1e-3,
            "min_lr": 1e-5,
            "eval_every": 100,
            "weight_decay": weight_decay,
        },
    }


def default_arms() -> list[dict[str, Any]]:
    """Return no regularizer, dropout at each place and at those of the papers, and three rivals."""
    learned = {"layer": "LearnedPositionwiseDropout", "penalty": "squared", "weight": 0.1}
    return [
        arm("none", []),
        arm("dropout input 0.2", [rate("input", 0.2)]),
        arm("dropout hidden 0.5", HIDDEN),
        arm("dropout input 0.2 + hidden 0.5", [rate("input", 0.2), *HIDDEN]),
        arm("weight decay 1", [], weight_decay=1.0),
        arm("shifts of 1 pixel", [], shift=1),
        arm(
            "LearnedPositionwiseDropout hidden",
            [{"select": kind, **learned} for kind in ("mlp_hidden", "classifier")],
        ),
    ]
