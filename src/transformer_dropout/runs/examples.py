"""The training examples of each step, augmented: a function of the config and the step alone."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch

from ..terms.held_out import held_out_split
from .folds import Part, batch_of, even_part, folded, part_of
from .order import Order, alternating_order, batch_indices, epoch_order
from .processes import Processes
from .run_config import RunConfig
from .task import Batch, Splits


class Examples:
    """What a run trains on.

    Args:
        config: the run.
        splits: the task's examples.
        processes: those that train together, each on a part of a batch.

    Attributes:
        splits: as trained and evaluated: the fold of a cross-validation, without the held-out part, and even
            in number where gates are cross-fitted.
        held_out: the part of the training split that the weights never train on; None for no such part.
    """

    def __init__(self, config: RunConfig, splits: Splits, processes: Processes) -> None:
        training = config.training
        self.config, self.processes, self.task = config, processes, config.find_task()
        self.splits = folded(splits, training.folds, training.fold)
        self.held_out: Part | None = None
        share = training.held_out if training.self_tuned is None else training.self_tuned.share
        if share:
            train = self.splits.train
            kept, held = (part.numpy() for part in held_out_split(len(train), share, config.seed))
            self.splits = replace(self.splits, train=part_of(train, kept))
            self.held_out = part_of(train, held)
        self.order: Order = epoch_order
        if training.cross_fit:
            self.splits = replace(self.splits, train=even_part(self.splits.train))
            self.order = alternating_order
        elif hasattr(self.task, "order") and not (training.folds or share):
            self.order = lru_cache(maxsize=4)(self.own_order)

    def own_order(self, examples: int, seed: int, epoch: int) -> np.ndarray:
        """Return the order of an epoch as the task wants it."""
        training = self.config.training
        together = training.batch * training.accumulation
        return self.task.order(self.splits.train, together, seed, epoch)  # type: ignore[attr-defined]

    def batch(self, step: int, part: int) -> Batch:
        """Return this process's examples of one forward of a step, both counted from 0."""
        training, processes = self.config.training, self.processes
        number = step * training.accumulation + part
        order = batch_indices(len(self.splits.train), training.batch, number, self.config.seed, self.order)
        batch = batch_of(self.task, self.splits.train, order[processes.rank :: processes.size])
        augment = getattr(self.task, "augment", None)
        if augment is None:
            return batch
        seed = np.random.SeedSequence((self.config.seed, number, processes.rank)).generate_state(1, np.uint64)
        return augment(self.config.data, batch, torch.Generator().manual_seed(int(seed[0]) % 2**63))

    def held_out_batch(self, step: int, part: int) -> Batch:
        """Return as many examples of the held-out part; of the same as the weights for cross-fitted gates."""
        if self.config.training.cross_fit:
            return self.batch(step, part)
        assert self.held_out is not None
        training = self.config.training
        number = step * training.accumulation + part
        order = batch_indices(len(self.held_out), training.batch, number, self.config.seed)
        return batch_of(self.task, self.held_out, order)
