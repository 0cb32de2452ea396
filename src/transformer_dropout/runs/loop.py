"""The one training loop, the same for every arm."""

import math
import time
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..kernels.sharded import like_shards, whole
from ..recipe import Recipe
from ..surgery.regularize import Regularization, regularize_
from ..surgery.speed_up import speed_up_
from ..tasks.language.data import PreparedData, Windows, batch_indices, fixed_probe
from ..tasks.language.decoder import Decoder
from .checkpoint import Checkpoint
from .early_stopping import EarlyStopping
from .evaluate import fixed_randomness, mask_statistics, mean_loss, repeatable_loss
from .optimizer import learning_rate, make_optimizer
from .processes import Processes, spread, without_gradient_sync
from .run_config import RunConfig
from .weight_penalties import WeightPenalties

# Steps between checks for a loss that is not finite; a check makes a GPU wait.
CHECK_EVERY = 10


class Diverged(RuntimeError):
    """The loss became infinite or not a number."""

    def __init__(self, step: int) -> None:
        super().__init__(f"The loss was not finite at step {step}")
        self.step = step


def build_model(config: RunConfig, vocabulary_size: int) -> tuple[Decoder, Regularization]:
    """Return the regularized decoder of a run, initialised from its seed.

    The decoder is drawn before the regularizers, so all arms of a seed start from the same weights.
    """
    torch.manual_seed(config.seed)
    model = Decoder(vocabulary_size, config.model)
    regularization = regularize_(model, Recipe.from_data(config.recipe))
    speed_up_(model)
    return model, regularization


class Training:
    """One run in memory: its model, its place in the data, and what it has seen so far.

    Args:
        config: the run.
        data: its tokens.
        processes: those that train it together.

    Attributes:
        step: optimizer steps done.
        loss: training loss of the last step, without the penalty.
    """

    def __init__(self, config: RunConfig, data: PreparedData, processes: Processes) -> None:
        self.config, self.processes = config, processes
        training = config.training
        if training.batch % processes.size:
            raise InputError(
                f"training.batch {training.batch} cannot be shared among {processes.size} processes; "
                f"use --set training.batch={processes.size * math.ceil(training.batch / processes.size)}."
            )
        self.windows = Windows(data.train, config.model.context)
        self.validation = Windows(data.validation, config.model.context)
        self.probe = fixed_probe(len(self.windows), training.probe_windows, seed=0)
        self.validation_probe = fixed_probe(
            len(self.validation), training.eval_windows or len(self.validation), seed=0
        )
        self.model, self.regularization = build_model(config, data.tokenizer.vocabulary_size)
        self.model.to(processes.device)
        self.shared = spread(self.model, processes, training.distributed)
        self.called: nn.Module = self.shared
        if training.compile:
            self.called = cast(nn.Module, torch.compile(self.shared))
        self.optimizer = make_optimizer(self.model, training)
        self.weight_penalties = WeightPenalties(self.model, self.optimizer, training)
        self.autocast = training.precision == "bfloat16" or (
            training.precision == "auto"
            and processes.device.type == "cuda"
            and torch.cuda.is_bf16_supported()
        )
        self.early_stopping = EarlyStopping(training.early_stopping)
        self.step = 0
        self.loss = torch.zeros(())
        self.not_finite_at = torch.full((), -1, device=processes.device)
        self.step_seconds: list[float] = []
        self.seconds_before = 0.0
        self.started = time.perf_counter()
        # Each process drops different elements of its own windows.
        torch.manual_seed(config.seed * 1_000_003 + processes.rank + 1)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of this run, earlier starts included."""
        return self.seconds_before + time.perf_counter() - self.started

    @property
    def epochs(self) -> float:
        """Passes over the training windows."""
        training = self.config.training
        return self.step * training.batch * training.accumulation / len(self.windows)

    def advance(self) -> None:
        """Make one optimizer step.

        Raises:
            Diverged: when the loss is not finite; checked every few steps and before each evaluation.
        """
        start = time.perf_counter()
        training = self.config.training
        self.model.train()
        self.set_progress(self.step)
        rate = learning_rate(self.step, training)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.loss = torch.zeros((), device=self.processes.device)
        for part in range(training.accumulation):
            self.backward(part)
        if training.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), training.clip)
        self.optimizer.step()
        self.weight_penalties.shrink()
        self.optimizer.zero_grad()
        self.step += 1
        bad = ~torch.isfinite(self.loss) & (self.not_finite_at < 0)
        self.not_finite_at = torch.where(bad, self.step, self.not_finite_at)
        if self.step % CHECK_EVERY == 0 or self.step == training.steps:
            self.check_finite()
        self.step_seconds.append(time.perf_counter() - start)

    def set_progress(self, step: int) -> None:
        """Move every schedule to a step's place in the run."""
        for part in (self.regularization, self.weight_penalties):
            part.set_progress(step / self.config.training.steps)

    def backward(self, part: int) -> None:
        """Add the gradients of one forward of an optimizer step."""
        training, processes = self.config.training, self.processes
        number = self.step * training.accumulation + part
        order = batch_indices(len(self.windows), training.batch, number, self.config.seed)
        tokens, targets = self.windows.inputs_and_targets(order[processes.rank :: processes.size])
        last = part == training.accumulation - 1
        with without_gradient_sync(self.shared, processes, last):
            with torch.autocast(processes.device.type, torch.bfloat16, enabled=self.autocast):
                loss = self.training_loss(tokens.to(processes.device), targets.to(processes.device))
            total = (loss + self.regularization.penalty()) / training.accumulation
            if last and self.weight_penalties.terms:
                total = total + self.weight_penalties.penalty()
            total.backward()
        self.loss += loss.detach() / training.accumulation

    def training_loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the loss that is minimised, which label smoothing changes and evaluation does not see."""
        smoothing = self.config.training.label_smoothing
        if not smoothing:
            return self.called(tokens, targets)
        logits = self.called(tokens).flatten(0, 1).float()
        return F.cross_entropy(logits, targets.flatten(), label_smoothing=smoothing)

    def check_finite(self) -> None:
        """Raise Diverged when a loss since the start was not finite in any process."""
        steps = self.processes.gather(int(self.not_finite_at))
        if max(steps) >= 0:
            raise Diverged(min(step for step in steps if step >= 0))

    def evaluate(self, *, twice: bool = False) -> dict[str, Any]:
        """Measure and return one line of the metrics.

        Args:
            twice: whether to evaluate twice and insist that both passes are bit-equal.

        Raises:
            Diverged: when a loss is not finite, so that such weights are never saved.
        """
        self.check_finite()
        # As in the last step; a run resumed behind it has not made one.
        self.set_progress(max(0, self.step - 1))
        # A recipe may sample its masks in evaluation; training must not notice.
        with fixed_randomness(0, self.processes.device):
            train_loss = mean_loss(self.model, self.windows, self.probe, self.processes, self.autocast)
            val_loss, bit_equal = self.validation_loss(twice)
        if not (math.isfinite(train_loss) and math.isfinite(val_loss)):
            raise Diverged(self.step)
        masks: dict[str, Any] = mask_statistics(
            self.model,
            self.regularization,
            self.windows,
            self.probe[: self.config.training.batch],
            self.processes,
            self.step,
        )
        seconds, weights = self.step_seconds, self.weight_penalties.metrics()
        masks["penalty"] += sum(weights["weight_penalties"].values())
        metrics = {
            "step": self.step,
            "tokens": self.step * self.tokens_per_step,
            "epochs": round(self.epochs, 4),
            "train_loss": train_loss,
            "val_loss": val_loss,
            **masks,
            **weights,
            "lr": learning_rate(max(0, self.step - 1), self.config.training),
            "step_seconds": sum(seconds) / len(seconds) if seconds else None,
            "peak_memory_bytes": peak_memory_bytes(self.processes.device),
            "evaluation_bit_equal": bit_equal,
        }
        self.step_seconds = []
        return metrics

    def validation_loss(self, twice: bool) -> tuple[float, bool | None]:
        """Return the loss on the validation split, and whether a second pass was bit-equal."""
        arguments = (self.validation, self.validation_probe, self.processes, self.autocast)
        if twice:
            return repeatable_loss(self.model, self.regularization, *arguments)
        with fixed_randomness(0, self.processes.device):
            return mean_loss(self.model, *arguments), None

    @property
    def tokens_per_step(self) -> int:
        """Training tokens of one optimizer step."""
        training = self.config.training
        return training.batch * training.accumulation * self.config.model.context

    def checkpoint(self) -> Checkpoint:
        """Return everything that the rest of the run depends on; every process must call it."""
        optimizer = {}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                optimizer[f"{name}/{key}"] = whole(value).cpu()
        random = {}
        for rank, states in enumerate(self.processes.gather(random_states(self.processes.device))):
            random |= {f"{rank}/{name}": state for name, state in states.items()}
        return Checkpoint(
            step=self.step,
            run=self.config.fingerprint(),
            tensors={"model": self.whole_state(), "optimizer": optimizer, "random": random},
            state={"early_stopping": self.early_stopping.state(), "seconds": self.seconds},
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
        for name, parameter in self.model.named_parameters():
            prefix = f"{name}/"
            for key, value in checkpoint.tensors["optimizer"].items():
                if key.startswith(prefix):
                    sharded = like_shards(value, parameter) if value.ndim else value.to(parameter.device)
                    self.optimizer.state[parameter][key.removeprefix(prefix)] = sharded
        set_random_states(
            {n.split("/")[1]: s for n, s in random.items() if n.startswith(f"{self.processes.rank}/")}
        )
        self.step = checkpoint.step
        self.early_stopping.load_state(checkpoint.state["early_stopping"])
        self.seconds_before = checkpoint.state["seconds"]

    def load_weights(self, checkpoint: Checkpoint) -> None:
        """Take a checkpoint's weights."""
        current = self.model.state_dict()
        weights = {n: like_shards(t, current[n]) for n, t in checkpoint.tensors["model"].items()}
        self.model.load_state_dict(weights, assign=False)


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Return the states of the random generators that training draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(states: dict[str, Tensor]) -> None:
    """Put the random generators where they were."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory this process has used: on its GPU, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
