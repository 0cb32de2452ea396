"""What every integration asks of a handle."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import fmean

import torch
from torch import nn

from ..errors import InputError
from ..layers import RateLayer
from ..recipe import selects
from ..schedules import Feedback
from ..surgery.regularize import Regularization


def has_penalty(regularization: Regularization, penalties: tuple) -> bool:
    """Return whether there is anything to add to the loss."""
    return bool(penalties) or any(rule.weight is not None for rule in regularization.recipe.rules)


def check_trained(model: nn.Module, regularization: Regularization) -> None:
    """Refuse layers that the optimizer would not reach.

    Raises:
        InputError: when the regularization belongs to another model, or when its layers are frozen.
    """
    if not any(module is regularization.model for module in model.modules()):
        raise InputError(
            "The regularization belongs to another model than the Trainer's; pass the model that was given "
            "to td.regularize_."
        )
    for placed in regularization.placed:
        if any(not parameter.requires_grad for parameter in placed.layer.parameters()):
            raise InputError(
                f"The {type(placed.layer).__name__} at {placed.site.path} is frozen and would learn nothing. "
                "get_peft_model freezes what is there before it: call td.regularize_ after it, on the PEFT "
                "model."
            )


def by_kind(metrics: dict[str, float], metric: str) -> dict[str, float]:
    """Return the means over the sites of each kind: ``p/mlp_output`` from every ``p/PATH/mlp_output``."""
    groups: dict[str, list[float]] = {}
    for name, value in metrics.items():
        if name.startswith(f"{metric}/"):
            groups.setdefault(f"{metric}/{name.rpartition('/')[2]}", []).append(value)
    return {name: fmean(values) for name, values in groups.items()}


def feedback_by_selector(
    regularization: Regularization, feedback: Feedback | Mapping[str, Feedback] | None
) -> dict[str, Feedback]:
    """Return what moves the rates of each selector; one feedback alone moves those of every kind.

    Raises:
        InputError: for a selector that matches no layer with a rate, or when there is none at all.
    """
    if isinstance(feedback, Feedback):
        with_rate = [p.site.kind for p in regularization.placed if isinstance(p.layer, RateLayer)]
        if not with_rate:
            raise InputError("Feedback moves rates, and no layer of this regularization has one.")
        return dict.fromkeys(with_rate, feedback)
    feedback = dict(feedback or {})
    for selector in feedback:
        if not rates_at(regularization, selector):
            listing = ", ".join(name for name in regularization.metrics() if name.startswith("p/"))
            raise InputError(f"Feedback for {selector!r} matches no layer with a rate; there are: {listing}.")
    return feedback


def rates_at(regularization: Regularization, selector: str) -> list[float]:
    """Return the rates of the layers that a selector matches."""
    return [
        placed.layer.p
        for placed in regularization.placed
        if isinstance(placed.layer, RateLayer) and selects(selector, placed.site)
    ]


def follow_gap(regularization: Regularization, feedback: Mapping[str, Feedback], gap: float) -> None:
    """Let validation minus training loss move the rates."""
    moved = {
        selector: steering.next_rate(fmean(rates_at(regularization, selector)), 0.0, gap)
        for selector, steering in feedback.items()
    }
    regularization.update(moved)


@contextmanager
def untouched_randomness(device: torch.device) -> Iterator[None]:
    """Measure without moving the random numbers of the training."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def draw_own_masks(seed: int, rank: int) -> None:
    """Give this process random numbers of its own: trainers seed all alike, and so would all masks be."""
    torch.manual_seed((seed * 1_000_003 + rank + 1) % 2**63)
