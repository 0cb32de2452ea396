"""What the mode of a model hides: parts that sleep in training, and evaluations that differ."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..sites.observation.inputs import call
from ..sites.observation.lineage import tensors_in
from ..sites.observation.restore import unchanged
from ._events import Event, Finding, show_rate
from ._findings import is_trained
from ._observe import Observer, observe_training
from ._places import parents

# A difference of evaluations above this share of the output is no rounding of a parallel sum.
ROUNDING = 1e-3


def eval_while_training(model: nn.Module, inputs: Any, training: Observer) -> Iterator[Finding]:
    """Find parts that are in evaluation mode inside a model in training, and would drop if they were not.

    That is seen by waking them and running the model again. Normalizations stay as they are, since theirs is
    another question, and so do parts whose parameters are all frozen, where evaluation is meant.
    """
    asleep = {
        path
        for path, module in model.named_modules()
        if not module.training and path in training.called and is_trained(model, path)
    }
    if not asleep:
        return
    for path in asleep:
        module = model.get_submodule(path)
        module.training = "Norm" not in type(module).__name__
    awake, _ = observe_training(model, inputs)
    dropping: dict[str, list[Event]] = {}
    for event in awake.events:
        around = [path for path in (event.path, *parents(event.path), "") if path in training.evaluated]
        if event.path in asleep and around and event.rate:
            dropping.setdefault(around[-1], []).append(event)
    for part, events in dropping.items():
        rates = sorted({show_rate(event.rate) for event in events})
        yield Finding(
            code="eval-while-training",
            site=part,
            message=f"It is in evaluation mode inside a model in training, so the {len(events)} random "
            f"operation{'s' * (len(events) > 1)} in it (rate {', '.join(rates)}) did not act. A model from "
            f"from_pretrained is in evaluation mode. Before training, type: {line_for(model, part)}",
        )


def line_for(model: nn.Module, part: str) -> str:
    """Return the line that puts a part of a model in training."""
    if all(name.isidentifier() for name in part.split(".")):
        return f"model.{part}.train()"
    return f'model.get_submodule("{part}").train()'


def varies_in_eval(model: nn.Module, inputs: Any, evaluation: Observer) -> Iterator[Finding]:
    """Find outputs that differ between two evaluations although no random operation was seen."""
    if any(event.random for event in evaluation.events):
        return
    with unchanged(model), torch.no_grad():
        again = call(model, inputs)
    if differ(tensors_in(evaluation.output), tensors_in(again)):
        yield Finding(
            code="varies-in-eval",
            site="",
            message="Two evaluations of the same inputs differ, although no random operation of torch ran "
            "and no global generator moved: a generator that the model made for itself in NumPy or Python, "
            "or a state that forwards leave behind. Draw only if self.training, with functions of torch, so "
            "that torch.manual_seed reaches it.",
        )


def differ(first: Iterable[Tensor], second: Iterable[Tensor]) -> bool:
    """Return whether two lists of outputs differ by more than rounding."""
    one, other = list(first), list(second)
    if len(one) != len(other) or any(a.shape != b.shape for a, b in zip(one, other, strict=True)):
        return True
    return any(distance(a, b) > ROUNDING for a, b in zip(one, other, strict=True) if a.device.type != "meta")


def distance(one: Tensor, other: Tensor) -> float:
    """Return the size of a difference as a share of the size of what differs."""
    if torch.equal(one, other):
        return 0.0
    a, b = (value.detach().double().nan_to_num(posinf=0, neginf=0) for value in (one, other))
    return (a - b).norm().item() / max(a.norm().item(), b.norm().item(), torch.finfo(torch.float64).tiny)
