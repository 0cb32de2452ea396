"""What a run trains, as the run sees it: data, a model, a loss and scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number that an evaluation gives.

    Attributes:
        name: its key in scores and records, where ``val_`` stands before it.
        unit: what it is measured in, for tables; empty for a plain number.
        better: which way is better.
    """

    name: str
    unit: str = ""
    better: Literal["lower", "higher"] = "lower"


LOSS = Metric(name="loss", unit="nats")
ACCURACY = Metric(name="accuracy", unit="share", better="higher")


class Split(Protocol):
    """The examples of one use; a task reads what it likes from its own kind of split."""

    def __len__(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Splits:
    """A task's examples by their use.

    Attributes:
        train: what is trained on.
        validation: what chooses: early stopping, the best settings, the verdict.
        test: what is looked at once, after everything is chosen; None where there is none.
        manifest: what the examples are, as plain data for records: ``source``, and for each split under
            its name a mapping with ``sha256`` and sizes. Runs compare only where these digests are equal.
    """

    train: Any
    validation: Any
    test: Any = None
    manifest: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some examples, ready for the model.

    Attributes:
        inputs: keyword arguments of the model's forward.
        targets: what the loss compares with.
        items: how many items the loss is a mean over.
    """

    inputs: Mapping[str, Any]
    targets: Tensor
    items: int

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.inputs.items()}
        return replace(self, inputs=moved, targets=self.targets.to(device))


@runtime_checkable
class Task(Protocol):
    """Data, a model, a loss and scores; everything else is the run's.

    A task knows nothing of arms, seeds, processes, checkpoints or regularizers, and the run knows nothing
    of tokens or pixels. It is made without arguments. Besides what stands here it may have any of

    * ``order(split, batch, seed, epoch) -> array``: the order of one epoch's examples; a plain shuffle
      without it.
    * ``augment(data, batch, generator) -> Batch``: changes a training batch at random, from this generator.
    * ``summarize(means) -> dict``: metrics that are functions of mean scores, such as a perplexity.
    * ``logits(model, batch) -> (logits, targets)``: class scores (..., classes) and classes (...), -100
      where none counts; label smoothing and R-Drop need them.
    * ``special_tokens(splits) -> ids``: those of the input tokens that noise leaves alone, such as padding; a
      task without it has no tokens, and token noise is refused.
    * ``evaluated_together(split) -> int``: examples in one forward of an evaluation; 256 without it.
    * ``fresh(model) -> names``: parameters that no pre-training made; a task without it trains from random
      weights, and the pull of L2-SP is refused.
    * ``translate(data, places, name) -> (data, places)``: reads run configs in another form.
    * ``sketch(model, data) -> Splits``: stands in for ``prepare`` where sizes are wanted and no data yet,
      so that a config that does not fit is refused before anything is read.
    * ``save(folder, model, splits, recipe, weights)``: writes the trained model in its own format.
    * ``default_arms(model, data) -> list``: the run configs, as plain data, that ``dropout compare --task``
      compares when none are given; it is told which keys of the sections the user sets.

    Attributes:
        item: what a loss is a mean over: token, sentence, image.
        metrics: what ``score`` and ``summarize`` give; the first decides.
        Model, Data: frozen dataclasses behind the sections ``model`` and ``data`` of a run config.
    """

    item: str
    metrics: tuple[Metric, ...]
    Model: type
    Data: type

    def prepare(self, model: Any, data: Any, cache: Path | None) -> Splits:
        """Return the examples, the same for every seed.

        Args:
            model: the section ``model``, of which the examples may depend, as on a context length.
            data: the section ``data``.
            cache: where to keep what takes long to make; None for the user's cache folder.
        """
        ...

    def build(self, model: Any, splits: Splits) -> nn.Module:
        """Return the model with weights drawn from torch's generator, which the run has seeded.

        Under ``torch.device("meta")`` it returns the same modules without data.
        """
        ...

    def batch(self, split: Any, indices: Sequence[int] | np.ndarray) -> Batch:
        """Return these examples as one batch, without randomness, on the CPU."""
        ...

    def loss(self, model: Callable[..., Any], batch: Batch) -> Tensor:
        """Return the mean loss per item, with no regularizer in it."""
        ...

    def score(self, model: Callable[..., Any], batch: Batch) -> dict[str, Tensor]:
        """Return sums over the batch's items; the run adds them up and divides by the items."""
        ...
