"""Evaluation: the clean loss over fixed windows, and what the masks keep."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from ..surgery.regularize import Regularization
from ..tasks.language.data import Windows
from .processes import Processes

# Tokens in one forward of an evaluation; more gains no speed and costs memory for the logits.
TOKENS_PER_FORWARD = 4096


class EvaluationError(RuntimeError):
    """Two evaluations of the same weights on the same windows differed."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode without gradients, and back."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


@contextmanager
def fixed_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Run on random numbers of their own, so that measuring never moves those of training."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def mean_loss(
    model: nn.Module, windows: Windows, indices: np.ndarray, processes: Processes, autocast: bool
) -> float:
    """Return the mean cross-entropy in nats over windows, in evaluation mode.

    Args:
        model: called as ``model(tokens, targets)``.
        windows: where the windows come from.
        indices: which windows; shared out among the processes.
        processes: those that take part.
        autocast: whether to compute in bfloat16.
    """
    count = max(1, TOKENS_PER_FORWARD // windows.context)
    batches = [indices[start : start + count] for start in range(0, len(indices), count)]
    total = torch.zeros((), dtype=torch.float64)
    with evaluating(model), torch.autocast(processes.device.type, torch.bfloat16, enabled=autocast):
        for first in range(0, len(batches), processes.size):
            # Sharded weights need every process in every forward, so the last round may repeat a batch.
            mine = first + processes.rank
            tokens, targets = windows.inputs_and_targets(batches[min(mine, len(batches) - 1)])
            loss = model(tokens.to(processes.device), targets.to(processes.device))
            if mine < len(batches):
                total += loss.double().cpu() * len(batches[mine])
    return (processes.sum(total.to(processes.device)) / len(indices)).item()


def samples_in_evaluation(regularization: Regularization) -> bool:
    """Say whether a layer of the recipe draws random masks in evaluation because it was asked to."""
    return any(getattr(placed.layer, "eval_mask", None) == "sample" for placed in regularization.placed)


def repeatable_loss(
    model: nn.Module,
    regularization: Regularization,
    windows: Windows,
    indices: np.ndarray,
    processes: Processes,
    autocast: bool,
) -> tuple[float, bool]:
    """Evaluate twice; return the loss and whether the passes were bit-equal.

    A recipe that samples in evaluation is evaluated under one fixed seed, which its record says by False.

    Raises:
        EvaluationError: when the passes differ although nothing should be random: dropout was left on.
    """
    arguments = (model, windows, indices, processes, autocast)
    if samples_in_evaluation(regularization):
        with fixed_randomness(0, processes.device):
            return mean_loss(*arguments), False
    first, second = mean_loss(*arguments), mean_loss(*arguments)
    if first != second and not np.isnan(first):
        raise EvaluationError(f"Two evaluations of the same weights gave {first} and {second}.")
    return first, True


def mask_statistics(
    model: nn.Module,
    regularization: Regularization,
    windows: Windows,
    indices: np.ndarray,
    processes: Processes,
    seed: int,
) -> dict[str, float | dict[str, float] | None]:
    """Measure what the masks keep on a few windows, as drawn in training and as used in evaluation.

    Returns:
        ``keep`` and ``penalty`` of a training forward, ``keep_eval`` of an evaluation forward, the last
        two also by site; None for the fractions when no layer computes masks.
    """
    tokens = windows.inputs_and_targets(indices)[0].to(processes.device)
    was_training = model.training
    with torch.no_grad(), fixed_randomness(seed, processes.device):
        model.train()
        with regularization.counting():
            model(tokens)
        penalty = regularization.penalty().item()
        sampled = regularization.metrics()
        model.eval()
        with regularization.counting():
            model(tokens)
        evaluated = regularization.metrics()
    model.train(was_training)
    return {
        "keep": sampled.get("keep"),
        "keep_eval": evaluated.get("keep"),
        "penalty": penalty,
        "keep_by_site": by_site(sampled),
        "keep_eval_by_site": by_site(evaluated),
    }


def by_site(metrics: dict[str, float]) -> dict[str, float]:
    """Return the kept fractions by site path."""
    return {name.removeprefix("keep/"): value for name, value in metrics.items() if name.startswith("keep/")}


def collapsed_masks(statistics: dict, margin: float = 0.01) -> list[str]:
    """Say which sites' masks have collapsed to all ones or all zeros.

    Args:
        statistics: what ``mask_statistics`` returned.
        margin: a kept fraction within this of 1 or 0 counts as collapsed.
    """
    alarms = []
    for when, key in (("in training", "keep_by_site"), ("as evaluated", "keep_eval_by_site")):
        keeps = statistics[key]
        ones = [site for site, keep in keeps.items() if keep > 1 - margin]
        zeros = [site for site, keep in keeps.items() if keep < margin]
        for sites, what in (
            (ones, "all ones: nothing is dropped"),
            (zeros, "all zeros: the place is cut off"),
        ):
            if sites:
                alarms.append(
                    f"Masks {when} are {what} (at {len(sites)} of {len(keeps)}: {', '.join(sites)})."
                )
    return alarms
