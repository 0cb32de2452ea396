"""The arms of ``dropout compare --task regression`` without arguments.

A perceptron with more weights than the noisy target has to tell, trained long enough to fit the noise.
"""

from typing import Any


def arm(name: str, recipe: list[dict[str, Any]], **training: Any) -> dict[str, Any]:
    """Return one arm; all share model, rows, length and learning rate."""
    shared = {"steps": 1000, "batch": 32, "lr": 1e-3, "min_lr": 1e-5, "eval_every": 50, "weight_decay": 0.0}
    return {"name": name, "recipe": recipe, "training": shared | training}


def default_arms() -> list[dict[str, Any]]:
    """Return no regularizer, two penalties, two noises at the input, hidden dropout, early stopping."""
    return [
        arm("none", []),
        arm("L2 0.03", [], l2=0.03),
        arm("L1 0.003", [], l1=0.003),
        arm("dropout input 0.2", [{"select": "input", "layer": "Dropout", "p": 0.2}]),
        arm("Gaussian noise input 0.5", [{"select": "input", "layer": "GaussianNoise", "std": 0.5}]),
        arm(
            "dropout hidden 0.5",
            [{"select": kind, "layer": "Dropout", "p": 0.5} for kind in ("mlp_hidden", "classifier")],
        ),
        arm("early stopping", [], early_stopping={"patience": 3}),
    ]
