"""The one training loop, the same for every task and every arm."""

import math
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..kernels.sharded import like_shards, whole
from ..recipe import Recipe
from ..surgery.regularize import Regularization, regularize_
from ..surgery.speed_up import speed_up_
from ..terms.averaging import EMA
from .checkpoint import Checkpoint
from .early_stopping import EarlyStopping
from .evaluate import Evaluator, fixed_randomness, mask_statistics
from .examples import Examples
from .folds import batch_of
from .held_out import HeldOut, refuse_several_processes
from .objective import Loss, Objective, place_experts
from .optimizer import (
    learning_rate,
    load_optimizer_state,
    make_optimizer,
    optimizer_state,
    set_learning_rate,
)
from .order import fixed_probe
from .processes import Processes, peak_memory_bytes, spread, without_gradient_sync
from .random_states import random_states, set_random_states
from .run_config import RunConfig
from .task import Batch, Splits
from .weight_penalties import WeightPenalties

# Steps between checks for a loss that is not finite; a check makes a GPU wait.
CHECK_EVERY = 10


class NonFiniteLoss(RuntimeError):
    """The loss became infinite or not a number."""

    def __init__(self, step: int) -> None:
        super().__init__(f"The loss was not finite at step {step}")
        self.step = step


def build_model(config: RunConfig, splits: Splits) -> tuple[nn.Module, Regularization]:
    """Return the regularized model of a run, initialised from its seed.

    The model is drawn before the regularizers, so all arms of a seed start from the same weights.
    """
    torch.manual_seed(config.seed)
    model = config.find_task().build(config.model, splits)
    place_experts(model, config.training)
    regularization = regularize_(model, Recipe.from_data(config.recipe))
    speed_up_(model)
    return model, regularization


class Training:
    """One run in memory: its model, its place in the data, and what it has seen so far.

    Args:
        config: the run.
        splits: its examples.
        processes: those that train it together.

    Attributes:
        step: optimizer steps done.
        items: items trained on so far.
        loss: training loss of the last step, without the penalty.
    """

    def __init__(self, config: RunConfig, splits: Splits, processes: Processes) -> None:
        training = config.training
        self.config, self.processes, self.task = config, processes, config.find_task()
        self.examples = Examples(config, splits, processes)
        self.splits = self.examples.splits
        refuse_several_processes(training, processes)
        if training.batch % processes.size:
            raise InputError(
                f"training.batch {training.batch} cannot be shared among {processes.size} processes; "
                f"use --set training.batch={processes.size * math.ceil(training.batch / processes.size)}."
            )
        self.probe = fixed_probe(len(self.splits.train), training.probe_windows, seed=0)
        self.validation_probe = fixed_probe(
            len(self.splits.validation), training.eval_windows or len(self.splits.validation), seed=0
        )
        self.model, self.regularization = build_model(config, splits)
        self.model.to(processes.device)
        self.average = EMA(self.model, training.schedule("ema")) if training.ema else None
        self.objective = Objective(self.task, training, self.model, splits)
        self.held_out = HeldOut(training, self.model, self.regularization, config.seed)
        self.shared = spread(self.model, processes, training.distributed)
        self.called: nn.Module = self.shared
        if training.compile:
            self.called = cast(nn.Module, torch.compile(self.shared))
        self.parameters = list(self.model.parameters())  # to walk through the modules takes long
        self.model.train()
        self.optimizer = make_optimizer(self.model, training)
        self.weight_penalties = WeightPenalties(self.model, self.optimizer, training, self.fresh())
        self.autocast = training.precision == "bfloat16" or (
            training.precision == "auto"
            and processes.device.type == "cuda"
            and torch.cuda.is_bf16_supported()
        )
        self.evaluator = Evaluator(
            task=self.task, model=self.model, processes=processes, autocast=self.autocast
        )
        self.early_stopping = EarlyStopping(training.early_stopping)
        self.step = self.items = 0
        self.loss = torch.zeros(())
        self.not_finite_at = torch.full((), -1, device=processes.device)
        self.step_seconds: list[float] = []
        self.seconds_before = 0.0
        self.started = time.perf_counter()
        # Each process drops different elements of its own examples.
        torch.manual_seed(config.seed * 1_000_003 + processes.rank + 1)

    def fresh(self) -> set[str]:
        """Return the names of the parameters that no pre-training made."""
        own = getattr(self.task, "fresh", None)
        layers = {p for placed in self.regularization.placed for p in placed.layer.parameters()}
        added = {name for name, parameter in self.model.named_parameters() if parameter in layers}
        return added | (set() if own is None else set(own(self.model)))

    def evaluated_weights(self) -> AbstractContextManager:
        """Let the model have the weights that are evaluated and kept: their average where there is one."""
        if self.average is None or not self.step:
            return nullcontext()
        return self.average.averaged_weights()

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of this run, earlier starts included."""
        return self.seconds_before + time.perf_counter() - self.started

    @property
    def epochs(self) -> float:
        """Passes over the training examples."""
        training = self.config.training
        return self.step * training.batch * training.accumulation / len(self.splits.train)

    def advance(self) -> None:
        """Make one optimizer step.

        Raises:
            NonFiniteLoss: when the loss is not finite; checked every few steps and before each evaluation.
        """
        start, training = time.perf_counter(), self.config.training
        if not self.model.training:
            self.model.train()
        self.set_progress(self.step)
        rate = learning_rate(self.step, training)
        set_learning_rate(self.optimizer, rate)
        self.loss = torch.zeros((), device=self.processes.device)
        batches = [self.training_batch(part) for part in range(training.accumulation)]
        self.held_out.tune(
            self.step,
            lambda: self.loss_of(batches[0], self.objective),
            lambda: self.loss_of(self.examples.held_out_batch(self.step, 0), self.task.loss),
        )
        total = self.processes.sum_of_numbers(sum(batch.items for batch in batches))
        for part, batch in enumerate(batches):
            self.backward(part, batch, total)
        self.items += total
        if training.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, training.clip)
        self.optimizer.step()
        self.weight_penalties.shrink()
        if self.average is not None:
            self.average.after_step()
        self.optimizer.zero_grad()
        self.step += 1
        bad = ~torch.isfinite(self.loss) & (self.not_finite_at < 0)
        self.not_finite_at = torch.where(bad, self.step, self.not_finite_at)
        if self.step % CHECK_EVERY == 0 or self.step == training.steps:
            self.check_finite()
        self.step_seconds.append(time.perf_counter() - start)

    def set_progress(self, step: int) -> None:
        """Move every schedule to a step's place in the run."""
        parts = (self.regularization, self.weight_penalties, self.objective, self.average)
        for part in parts:
            if part is not None:
                part.set_progress(step / self.config.training.steps)

    def training_batch(self, part: int) -> Batch:
        """Return this process's examples of one forward of the step that comes next."""
        return self.examples.batch(self.step, part)

    def backward(self, part: int, batch: Batch, total: int) -> None:
        """Add the gradients of one forward of an optimizer step.

        Args:
            part: which of the step's forwards.
            batch: its examples.
            total: items of the whole step, over all forwards and processes: every item weighs the same.
        """
        training, processes = self.config.training, self.processes
        share = batch.items * training.accumulation * processes.size / total
        last = part == training.accumulation - 1
        with without_gradient_sync(self.shared, processes, last):
            loss = share * self.loss_of(batch, self.objective)
            whole_loss = (loss + self.objective.penalty()) / training.accumulation
            if last and self.weight_penalties.terms:
                whole_loss = whole_loss + self.weight_penalties.penalty()
            penalties = self.layer_penalty()
            self.held_out.backward(self.step, whole_loss, penalties, lambda: self.held_out_loss(part))
        self.loss += loss.detach() / training.accumulation

    def loss_of(self, batch: Batch, loss: Loss) -> Tensor:
        """Return a loss of a batch under the run's precision."""
        device = self.processes.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.autocast):
            return loss(self.called, batch.to(device))

    def layer_penalty(self) -> Tensor:
        """Return the penalty of the layers in the last forward, as one of a step's forwards adds it."""
        return self.regularization.penalty() / self.config.training.accumulation

    def held_out_loss(self, part: int) -> Tensor:
        """Return what the gates learn from in one forward of a step: held-out examples and their penalty."""
        loss = self.loss_of(self.examples.held_out_batch(self.step, part), self.task.loss)
        return loss / self.config.training.accumulation + self.layer_penalty()

    def check_finite(self) -> None:
        """Raise NonFiniteLoss when a loss since the start was not finite in any process."""
        steps = self.processes.gather(int(self.not_finite_at))
        if max(steps) >= 0:
            raise NonFiniteLoss(min(step for step in steps if step >= 0))

    def evaluate(self, *, twice: bool = False) -> dict[str, Any]:
        """Measure and return one line of the metrics.

        Args:
            twice: whether to evaluate twice and insist that both passes are bit-equal.

        Raises:
            NonFiniteLoss: when a loss is not finite, so that such weights are never saved.
        """
        self.check_finite()
        # As in the last step; a run resumed behind it has not made one.
        self.set_progress(max(0, self.step - 1))
        with self.evaluated_weights():
            # A recipe may sample its masks in evaluation; training must not notice.
            with fixed_randomness(0, self.processes.device):
                train = self.evaluator.scores(self.splits.train, self.probe)
                validation, bit_equal = self.validation_scores(twice)
            if not all(map(math.isfinite, (*train.values(), *validation.values()))):
                raise NonFiniteLoss(self.step)
            probe = batch_of(self.task, self.splits.train, self.probe[: self.config.training.batch])
            masks: dict[str, Any] = mask_statistics(
                self.task, self.model, self.regularization, probe.to(self.processes.device), self.step
            )
        seconds, weights = self.step_seconds, self.weight_penalties.metrics()
        masks["penalty"] += sum(weights["weight_penalties"].values())
        self.step_seconds = []
        return {
            "step": self.step,
            f"{self.task.item}s": self.items,
            "epochs": round(self.epochs, 4),
            **{f"train_{name}": value for name, value in train.items()},
            **{f"val_{name}": value for name, value in validation.items()},
            **masks,
            **weights,
            "lr": learning_rate(max(0, self.step - 1), self.config.training),
            "step_seconds": sum(seconds) / len(seconds) if seconds else None,
            "peak_memory_bytes": peak_memory_bytes(self.processes.device),
            "evaluation_bit_equal": bit_equal,
        }

    def validation_scores(self, twice: bool) -> tuple[dict[str, float], bool | None]:
        """Return the metrics on the validation split, and whether a second pass was bit-equal."""
        split, probe = self.splits.validation, self.validation_probe
        if twice:
            return self.evaluator.repeatable(self.regularization, split, probe)
        with fixed_randomness(0, self.processes.device):
            return self.evaluator.scores(split, probe), None

    def test_scores(self) -> dict[str, float]:
        """Return the metrics on the test split, for the one look at the end; none without one."""
        if self.splits.test is None:
            return {}
        with fixed_randomness(0, self.processes.device):
            scores = self.evaluator.scores(self.splits.test, np.arange(len(self.splits.test)))
        return {f"test_{name}": value for name, value in scores.items()}

    def deciding(self, metrics: dict[str, Any]) -> float:
        """Return the metric that decides, as a number of which less is better."""
        first = self.task.metrics[0]
        return metrics[f"val_{first.name}"] * (1 if first.better == "lower" else -1)

    def checkpoint(self) -> Checkpoint:
        """Return everything that the rest of the run depends on; every process must call it."""
        optimizer = optimizer_state(self.model, self.optimizer)
        average = {} if self.average is None else {"average": self.average.state_dict()}
        random = {}
        for rank, states in enumerate(self.processes.gather(random_states(self.processes.device))):
            random |= {f"{rank}/{name}": state for name, state in states.items()}
        return Checkpoint(
            step=self.step,
            run=self.config.fingerprint(),
            tensors={"model": self.whole_state(), "optimizer": optimizer, "random": random}
            | average
            | self.held_out.tensors(),
            state={
                "early_stopping": self.early_stopping.state(),
                "seconds": self.seconds,
                "items": self.items,
                **self.held_out.state(),
            },
        )

    def whole_state(self) -> dict[str, Tensor]:
        """Return the model's state, gathered where it is sharded; every process must call it."""
        return {name: whole(tensor).cpu() for name, tensor in self.model.state_dict().items()}

    def load(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint.

        Raises:
            InputError: when it was written by another number of processes.
        """
        random = checkpoint.tensors["random"]
        if len({name.split("/")[0] for name in random}) != self.processes.size:
            raise InputError(
                "The checkpoint was written by another number of processes; start as many with torchrun."
            )
        self.load_weights(checkpoint)
        load_optimizer_state(self.model, self.optimizer, checkpoint.tensors["optimizer"])
        set_random_states(
            {n.split("/")[1]: s for n, s in random.items() if n.startswith(f"{self.processes.rank}/")}
        )
        self.step, self.items = checkpoint.step, checkpoint.state["items"]
        self.held_out.load(checkpoint.tensors, checkpoint.state)
        self.early_stopping.load_state(checkpoint.state["early_stopping"])
        self.seconds_before = checkpoint.state["seconds"]

    def load_weights(self, checkpoint: Checkpoint) -> None:
        """Take a checkpoint's weights."""
        current = self.model.state_dict()
        weights = {n: like_shards(t, current[n]) for n, t in checkpoint.tensors["model"].items()}
        self.model.load_state_dict(weights, assign=False)
        if self.average is not None:
            self.average.load_state_dict(checkpoint.tensors["average"])
