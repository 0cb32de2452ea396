"""Hugging Face's ``Trainer`` and what inherits from it: schedules, penalties, logs, checkpoints, stopping.

`RegularizedTrainerMixin` does all of it; `RegularizationCallback` alone serves recipes without penalties.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset
from transformers import Trainer

from ..errors import InputError
from ..kernels.sharded import is_sharded
from ..layers import RateLayer
from ..schedules import Feedback
from ..surgery.regularize import Regularization
from ..surgery.saved_recipe import (
    LEARNED_FILE,
    RECIPE_FILE,
    learned_state,
    load_recipe,
    restore,
    save_recipe,
    save_regularized,
)
from ._handle import by_kind, check_trained, has_penalty, untouched_randomness
from ._trainer_callbacks import GapStopping, RegularizationCallback
from ._trial_callback import TrialCallback, regularized_trainers

__all__ = [
    "GapStopping",
    "RegularizationCallback",
    "RegularizedTrainerMixin",
    "TrialCallback",
    "regularized_trainers",
]

# What a mixin's methods find by `super()`; at run time the Trainer comes from the subclass's other base.
Base = Trainer if TYPE_CHECKING else object


class RegularizedTrainerMixin(Base):
    """Adds a regularization to a Trainer: ``class MyTrainer(RegularizedTrainerMixin, Trainer): pass``.

    The loss that is minimised is ``loss + penalty``, whatever the gradient accumulation and the number of
    processes; the two are logged apart. An evaluation also measures, in evaluation mode, the loss of a fixed
    probe of the training data, ``eval_train_loss``, and with it the clean gap,
    ``eval_gap = eval_loss - eval_train_loss``; and the fractions that computed masks keep, as drawn in
    training, ``eval_keep/KIND``, and as evaluated, ``eval_keep_eval/KIND``.

    Args:
        args, kwargs: the Trainer's.
        regularization: what `regularize_` returned for the model that is trained.
        penalties: further terms of the loss, called without arguments, such as ``td.L2SP(model, 0.1)``.
        feedback: `td.Feedback` that moves rates by the clean gap, as in `RegularizationCallback`.
        probe: how many training examples, evenly spread, make the probe; 0 measures none.

    Raises:
        InputError: when the regularization belongs to another model, or when its layers are frozen.
    """

    def __init__(
        self,
        *args: Any,
        regularization: Regularization,
        penalties: Iterable[Callable[[], Tensor]] = (),
        feedback: Feedback | Mapping[str, Feedback] | None = None,
        probe: int = 256,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        assert self.model is not None
        check_trained(self.model, regularization)
        self.regularization, self.penalties, self.probe = regularization, tuple(penalties), probe
        self.adds_penalty = has_penalty(regularization, self.penalties)
        if self.adds_penalty and self.args.n_gpu > 1:
            raise InputError(
                "nn.DataParallel loses the layers' penalties; start one process a GPU with torchrun."
            )
        self.last_penalty = self.penalty_sum = torch.zeros(())
        self.penalty_count = 0
        self.progress_callback = RegularizationCallback(
            regularization, penalties=self.penalties, adds_penalties=True, feedback=feedback
        )
        self.add_callback(self.progress_callback)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss, in training with the penalty."""
        result: Any = super().compute_loss(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )
        if not (self.adds_penalty and model.training):
            return result
        loss, outputs = result if return_outputs else (result, None)
        penalty = self.regularization.penalty().to(loss.device)
        penalty = penalty + sum(term() for term in self.penalties)
        self.last_penalty = penalty.detach()
        loss = loss + penalty / self.left_to_divide(num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def left_to_divide(self, num_items_in_batch: Tensor | int | None) -> int:
        """Return what the penalty must be divided by so that an optimizer step sees its mean.

        A loss that was divided by the number of items of all accumulated batches is not divided again; the
        Trainer divides any other by the number of batches. The factor for several processes is already in
        the loss when the penalty is added, and their gradients are averaged.
        """
        scaled = getattr(self, "loss_is_scaled_for_ga", None)
        if scaled is None:
            by_model = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            scaled = by_model or self.compute_loss_func is not None
        return self.current_gradient_accumulation_steps if scaled else 1

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Make one forward and backward; return the loss for the log, without the penalty."""
        loss = super().training_step(*args, **kwargs)
        if not self.adds_penalty:
            return loss
        self.penalty_sum = self.penalty_sum.to(loss.device) + self.last_penalty
        self.penalty_count += 1
        return loss - self.last_penalty / self.current_gradient_accumulation_steps

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log rates and penalty along with the training loss."""
        if "loss" in logs:
            logs.update(by_kind(self.regularization.metrics(), "p"))
            if self.penalty_count:
                logs["penalty"] = self.penalty_sum.item() / self.penalty_count
            self.penalty_sum, self.penalty_count = torch.zeros(()), 0
        super().log(logs, start_time)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Evaluate; add the probe's loss, the clean gap and the kept fractions to the metrics."""
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        loss = (output.metrics or {}).get(f"{metric_key_prefix}_loss")
        if description != "Evaluation" or loss is None or self.probe_loader is None:
            return output
        with untouched_randomness(self.args.device), self.regularization.counting():
            probe = super().evaluation_loop(self.probe_loader, "Probe", True, None, "probe").metrics or {}
            keep_eval = by_kind(self.regularization.metrics(), "keep")
        measured = {"train_loss": probe["probe_loss"], "gap": loss - probe["probe_loss"]}
        measured |= {name.replace("keep/", "keep_eval/"): value for name, value in keep_eval.items()}
        measured |= self.keep_in_training()
        named = {f"{metric_key_prefix}_{name}": value for name, value in measured.items()}
        return output._replace(metrics=(output.metrics or {}) | named)

    @cached_property
    def probe_loader(self) -> Any:
        """The fixed training examples of the probe, None where there are none."""
        dataset: Any = self.train_dataset
        if not (self.probe and hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            return None
        count = min(self.probe, len(dataset))
        indices = [index * len(dataset) // count for index in range(count)]
        # A dataset that can select keeps its columns, which the Trainer looks at.
        chosen = dataset.select(indices) if hasattr(dataset, "select") else Subset(dataset, indices)
        return self.get_eval_dataloader(chosen)

    def keep_in_training(self) -> dict[str, float]:
        """Return the fractions that masks keep in training mode, on the probe's first batch."""
        if all(isinstance(placed.layer, RateLayer) for placed in self.regularization.placed):
            return {}
        model: Any = self.model
        was_training = model.training
        with untouched_randomness(self.args.device), self.regularization.counting():
            # To the end, since the Trainer counts the loaders that have begun.
            for index, batch in enumerate(self.probe_loader):
                if index == 0:
                    model.train()
                    # Not by `compute_loss`, where some trainers count what they have trained on.
                    with torch.no_grad(), self.compute_loss_context_manager():
                        model(**self._prepare_inputs(batch))
                        self.regularization.penalty()
                    model.train(was_training)
            return by_kind(self.regularization.metrics(), "keep")

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model with the recipe, and the layers' weights, beside it."""
        self.progress_callback.remember(self.state)
        super().save_model(output_dir, _internal_call)
        folder = Path(output_dir or str(self.args.output_dir))
        learned = learned_state(self.regularization).values()
        if any(map(is_sharded, learned)):
            # Every process gives its shards, and the first writes.
            save_regularized(folder, self.regularization)
        elif self.args.should_save and self.is_fsdp_enabled and learned:
            # FSDP's first version: the layers' weights lie in the model's own checkpoint alone.
            save_recipe(folder, self.regularization.recipe)
        elif self.args.should_save:
            save_regularized(folder, self.regularization)

    # The checkpoint of an adapter holds the adapter alone, so what layers have learned comes from beside it.
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        recipe = Path(resume_from_checkpoint) / RECIPE_FILE
        if recipe.is_file() and load_recipe(recipe.parent) != self.regularization.recipe:
            raise InputError(f"The checkpoint belongs to another recipe; apply the one in {recipe}.")
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.load_learned(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self.load_learned(str(self.state.best_model_checkpoint))

    def load_learned(self, folder: str) -> None:
        """Give the layers what they had learned at a checkpoint."""
        file = Path(folder) / LEARNED_FILE
        if file.is_file():
            restore(learned_state(self.regularization), file)
