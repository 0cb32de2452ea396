"""What a classifier is worth: loss and accuracy in evaluation mode, and what its masks keep."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...layers import RateLayer
from ...runs.evaluate import by_site, evaluating, fixed_randomness
from ...surgery.regularize import Regularization
from .batches import Batch, Encoded

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Score:
    """The result of one evaluation.

    Attributes:
        loss: mean cross-entropy in nats a sentence.
        accuracy: share of sentences whose class has the highest logit.
    """

    loss: float
    accuracy: float


def score(model: nn.Module, sentences: Encoded) -> Score:
    """Evaluate all sentences, in evaluation mode and on random numbers of their own."""
    loss, right = 0.0, 0
    with evaluating(model), fixed_randomness(0, CPU):
        for indices in sentences.by_length():
            batch = sentences.batch(indices)
            logits = model(**batch.inputs).logits.double()
            loss += F.cross_entropy(logits, batch.labels, reduction="sum").item()
            right += int((logits.argmax(dim=-1) == batch.labels).sum())
    return Score(loss=loss / len(sentences), accuracy=right / len(sentences))


def mask_statistics(regularization: Regularization, batch: Batch, seed: int) -> dict[str, Any]:
    """Measure what learned masks keep of one batch, as drawn in training and as used in evaluation.

    Returns:
        ``keep`` and ``keep_eval``, None without learned masks, and both by site.
    """
    if all(isinstance(placed.layer, RateLayer) for placed in regularization.placed):
        return {"keep": None, "keep_eval": None, "keep_by_site": {}, "keep_eval_by_site": {}}
    model, found = regularization.model, []
    with evaluating(model), fixed_randomness(seed, CPU):
        for training in (True, False):
            model.train(training)
            with regularization.counting():
                model(**batch.inputs)
            found.append(regularization.metrics())
            if training:
                # The next training forward must find an empty slot.
                regularization.penalty()
    sampled, evaluated = found
    return {
        "keep": sampled.get("keep"),
        "keep_eval": evaluated.get("keep"),
        "keep_by_site": by_site(sampled),
        "keep_eval_by_site": by_site(evaluated),
    }
