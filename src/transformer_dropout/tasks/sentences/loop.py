"""The training of one run: small, in plain PyTorch, the same for every arm."""

import math
import time
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ...runs.evaluate import fixed_randomness
from ...runs.loop import Diverged, peak_memory_bytes
from ...surgery.regularize import regularize_
from ...terms.weights import weight_decay_groups
from .arms import parts_of
from .batches import Encoded, batch_indices, encode, steps_per_epoch
from .config import FineTuningConfig, TrainingConfig
from .evaluate import CPU, Score, mask_statistics, score
from .objective import Objective
from .pretrained import load_classifier, load_tokenizer, model_folder
from .sentences import Splits


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Return the learning rate of a step: linear warm-up, then a straight line to 0."""
    warmup = round(config.warmup * config.steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * (config.steps - step) / (config.steps - warmup)


class FineTuning:
    """One run in memory.

    The classifier is drawn before the regularizers and the masks have random numbers of their own, so all
    arms of a seed share initial weights and data order.

    Args:
        config: the run.
        splits: its sentences.

    Attributes:
        step: optimizer steps done.
        loss: training loss of the last step, without the penalty.
    """

    def __init__(self, config: FineTuningConfig, splits: Splits) -> None:
        self.config, training = config, config.training
        folder = model_folder(config.model.source)
        self.tokenizer = load_tokenizer(folder)
        self.train, self.validation, self.test = (
            encode(part, self.tokenizer, training.max_tokens)
            for part in (splits.train, splits.validation, splits.test)
        )
        self.probe = self.train.probe(training.probe)
        classifier = load_classifier(folder, len(config.data.files), config.seed)
        self.model = classifier.model
        recipe, terms = parts_of(config.recipe)
        self.objective = Objective(classifier, terms)
        # What the layers draw for themselves is no part of what the arms share.
        with fixed_randomness(config.seed, CPU):
            self.regularization = regularize_(self.model, recipe)
        self.optimizer = torch.optim.AdamW(
            weight_decay_groups(self.model, training.weight_decay), lr=training.lr, fused=True
        )
        self.step = self.tokens = 0
        self.loss = self.penalty = 0.0
        self.step_seconds: list[float] = []
        self.started = time.perf_counter()
        torch.manual_seed(config.seed * 1_000_003 + 1)

    @property
    def epochs(self) -> float:
        """Passes over the training sentences."""
        return self.step / steps_per_epoch(len(self.train), self.config.training.batch)

    @property
    def seconds(self) -> float:
        """Wall-clock seconds since the run was built."""
        return time.perf_counter() - self.started

    def indices(self, step: int) -> list[int]:
        """Return the training sentences of one step."""
        return batch_indices(self.train.lengths, self.config.training.batch, step, self.config.seed)

    def advance(self) -> None:
        """Make one optimizer step.

        Raises:
            Diverged: when the loss is not finite.
        """
        start, training = time.perf_counter(), self.config.training
        self.regularization.set_progress(self.step / training.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, training)
        self.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), training.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.step_seconds.append(time.perf_counter() - start)

    def backward(self) -> None:
        """Add the gradients of the step that comes next."""
        batch = self.train.batch(self.indices(self.step))
        self.model.train()
        with self.computing():
            loss = self.objective.loss(batch.inputs, batch.labels)
        penalty = self.objective.penalty(self.regularization)
        (loss + penalty).backward()
        self.loss, self.penalty = loss.item(), penalty.item()
        self.tokens += batch.tokens
        if not math.isfinite(self.loss + self.penalty):
            raise Diverged(self.step + 1)

    def computing(self) -> torch.autocast:
        """Return the context in which the model runs, for its dtype."""
        return torch.autocast(CPU.type, torch.bfloat16, enabled=self.config.training.dtype == "bfloat16")

    def score(self, sentences: Encoded) -> Score:
        """Return the score on some sentences."""
        with self.computing():
            return score(self.model, sentences)

    def evaluate(self) -> dict[str, Any]:
        """Measure and return one line of the metrics.

        Raises:
            Diverged: when a loss is not finite.
        """
        train, validation = self.score(self.probe), self.score(self.validation)
        if not math.isfinite(train.loss + validation.loss):
            raise Diverged(self.step)
        with self.computing():
            batch = self.probe.batch(range(min(64, len(self.probe))))
            masks = mask_statistics(self.regularization, batch, self.step)
        seconds, self.step_seconds = self.step_seconds, []
        return {
            "step": self.step,
            "tokens": self.tokens,
            "epochs": round(self.epochs, 4),
            "train_loss": train.loss,
            "val_loss": validation.loss,
            "train_accuracy": train.accuracy,
            "val_accuracy": validation.accuracy,
            **masks,
            "penalty": self.penalty,
            "lr": learning_rate(max(0, self.step - 1), self.config.training),
            "step_seconds": sum(seconds) / len(seconds) if seconds else None,
            "peak_memory_bytes": peak_memory_bytes(CPU),
        }

    def count_flops(self) -> dict[str, float]:
        """Return operations a token, counted in one training step that is not made and one evaluation.

        Products of matrices are counted, on the first batch, with its padding.
        """
        batch = self.train.batch(self.indices(0))
        with fixed_randomness(0, CPU), FlopCounterMode(display=False) as training:
            self.backward()
        self.optimizer.zero_grad()
        self.tokens, self.loss, self.penalty = 0, 0.0, 0.0
        self.model.eval()
        with torch.no_grad(), fixed_randomness(0, CPU), FlopCounterMode(display=False) as inference:
            self.model(**batch.inputs)
        return {
            "training_per_token": training.get_total_flops() / batch.tokens,
            "inference_per_token": inference.get_total_flops() / batch.tokens,
        }
