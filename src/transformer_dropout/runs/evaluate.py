"""Evaluation: clean scores over fixed examples, and what the masks keep."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..kernels.sharded import reshard
from ..surgery.regularize import Regularization
from .folds import batch_of, whole
from .processes import Processes
from .task import Batch, Task

# Examples in one forward of an evaluation where the task does not say how many.
TOGETHER = 256
# Under this name the items of a batch are summed beside its scores.
ITEMS = "items"


class EvaluationError(RuntimeError):
    """Two evaluations of the same weights on the same examples differed."""


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
        reshard(model)


@contextmanager
def fixed_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Run on random numbers of their own, so that measuring never moves those of training."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """What every evaluation of a run shares.

    Attributes:
        task: gives batches and scores.
        model: what is evaluated.
        processes: those that take part.
        autocast: whether to compute in bfloat16.
    """

    task: Task
    model: nn.Module
    processes: Processes
    autocast: bool

    def scores(self, split: Any, indices: np.ndarray) -> dict[str, float]:
        """Return the metrics over examples of a split, each a mean over their items, in evaluation mode.

        Args:
            split: where the examples come from.
            indices: which of them; shared out among the processes.
        """
        together = getattr(self.task, "evaluated_together", None)
        count = TOGETHER if together is None else together(whole(split))
        batches = [indices[start : start + count] for start in range(0, len(indices), count)]
        sums: dict[str, Tensor] = {}
        device, size = self.processes.device, self.processes.size
        with evaluating(self.model), torch.autocast(device.type, torch.bfloat16, enabled=self.autocast):
            for first in range(0, len(batches), size):
                # Sharded weights need every process in every forward, so the last round may repeat a batch.
                mine = first + self.processes.rank
                batch = batch_of(self.task, split, batches[min(mine, len(batches) - 1)]).to(device)
                found = self.task.score(self.model, batch) | {ITEMS: torch.tensor(batch.items)}
                for name, value in found.items() if mine < len(batches) else ():
                    sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + value.double().cpu()
        # A process without a batch of its own has seen no names.
        names: list[str] = max(self.processes.gather(list(sums)), key=len)  # type: ignore[assignment]
        totals = torch.stack([sums.get(name, torch.zeros((), dtype=torch.float64)) for name in names])
        means = dict(zip(names, self.processes.sum(totals.to(device)).tolist(), strict=True))
        items = means.pop(ITEMS)
        means = {name: value / items for name, value in means.items()}
        summarize = getattr(self.task, "summarize", None)
        return means if summarize is None else summarize(means)

    def repeatable(
        self, regularization: Regularization, split: Any, indices: np.ndarray
    ) -> tuple[dict[str, float], bool]:
        """Evaluate twice; return the metrics and whether the passes were bit-equal.

        A recipe that samples in evaluation is evaluated under one fixed seed, which its record says by False.

        Raises:
            EvaluationError: when the passes differ although nothing should be random: dropout was left on.
        """
        if samples_in_evaluation(regularization):
            with fixed_randomness(0, self.processes.device):
                return self.scores(split, indices), False
        first, second = self.scores(split, indices), self.scores(split, indices)
        if first != second and not any(map(math.isnan, first.values())):
            raise EvaluationError(f"Two evaluations of the same weights gave {first} and {second}.")
        return first, True


def samples_in_evaluation(regularization: Regularization) -> bool:
    """Return whether a layer of the recipe draws random masks in evaluation because it was asked to."""
    return any(getattr(placed.layer, "eval_mask", None) == "sample" for placed in regularization.placed)


def mask_statistics(
    task: Task, model: nn.Module, regularization: Regularization, batch: Batch, seed: int
) -> dict[str, float | dict[str, float] | None]:
    """Measure what the masks keep of one batch, as drawn in training and as used in evaluation.

    Returns:
        ``keep`` and ``penalty`` of a training forward, ``keep_eval`` of an evaluation forward, the last
        two also by site, and the rate of each site that has one; None for the fractions when no layer
        computes masks.
    """
    penalty, sampled, evaluated = 0.0, regularization.metrics(), {}
    weighted = any(rule.weight is not None for rule in regularization.recipe.rules)
    if weighted or regularization.computing_masks():
        penalty, sampled, evaluated = counted_masks(task, model, regularization, batch, seed)
    return {
        "keep": sampled.get("keep"),
        "keep_eval": evaluated.get("keep"),
        "penalty": penalty,
        "keep_by_site": by_site(sampled),
        "keep_eval_by_site": by_site(evaluated),
        "rate_by_site": by_site(sampled, "p"),
    }


def counted_masks(
    task: Task, model: nn.Module, regularization: Regularization, batch: Batch, seed: int
) -> tuple[float, dict[str, float], dict[str, float]]:
    """Return the penalty and the metrics of a training forward, and those of an evaluation forward."""
    was_training = model.training
    with torch.no_grad(), fixed_randomness(seed, batch.targets.device):
        model.train()
        with regularization.counting():
            task.loss(model, batch)
        penalty = regularization.penalty().item()
        sampled = regularization.metrics()
        model.eval()
        with regularization.counting():
            task.loss(model, batch)
        evaluated = regularization.metrics()
    model.train(was_training)
    reshard(model)
    return penalty, sampled, evaluated


def by_site(metrics: dict[str, float], measure: str = "keep") -> dict[str, float]:
    """Return the kept fractions, or another measure, by site path."""
    start = f"{measure}/"
    return {name.removeprefix(start): value for name, value in metrics.items() if name.startswith(start)}


def collapsed_masks(statistics: dict, margin: float = 0.01) -> list[str]:
    """Return one sentence for sites whose masks have collapsed to all ones or all zeros.

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
