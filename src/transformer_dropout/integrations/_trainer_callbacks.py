"""Callbacks of Hugging Face's ``Trainer``: one that moves rates and weights, one that stops."""

from collections.abc import Iterable, Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from ..errors import InputError
from ..schedules import Feedback
from ..surgery.regularize import Regularization
from ._handle import draw_own_masks, feedback_by_selector, follow_gap, has_penalty

STATE_KEY = "regularization"
GAP = "eval_gap"


class RegularizationCallback(TrainerCallback):
    """Moves rates and penalty weights with the training; their state travels in the Trainer's checkpoints.

    Progress is ``global_step / max_steps``, so a resumed run continues in the middle of a schedule.

    Args:
        regularization: what `regularize_` returned.
        penalties: further terms of the loss whose weights move too, such as ``td.L2SP(model, 0.1)``.
        adds_penalties: whether the trainer adds the penalties; `RegularizedTrainerMixin` does.
        feedback: moves rates after each evaluation by ``eval_gap``, which `RegularizedTrainerMixin` measures:
            one for all kinds of sites, or some by selector. Each selector has one rate, which starts at the
            mean of the rates there and takes the place of their schedules.

    Raises:
        InputError: when there are penalties that nothing would add, for a selector without a rate, or for an
            evaluation without the gap.
    """

    def __init__(
        self,
        regularization: Regularization,
        *,
        penalties: Iterable[Any] = (),
        adds_penalties: bool = False,
        feedback: Feedback | Mapping[str, Feedback] | None = None,
    ) -> None:
        self.regularization, self.penalties = regularization, tuple(penalties)
        self.feedback = feedback_by_selector(regularization, feedback)
        if has_penalty(regularization, self.penalties) and not adds_penalties:
            raise InputError(
                "The regularization has penalties, and a callback cannot add them to the loss: write class "
                "MyTrainer(RegularizedTrainerMixin, Trainer) and pass it regularization=... instead."
            )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Continue from the checkpoint, if there is one; else let each process draw masks of its own."""
        # Ranks that share a batch by tensor or context parallelism must share its masks.
        if args.world_size > 1 and state.global_step == 0 and args.parallelism_config is None:
            draw_own_masks(args.seed, args.process_index)
        stored: Any = state.stateful_callbacks or {}
        saved = stored.get(STATE_KEY)
        if saved is not None:
            self.regularization.load_state_dict(saved)
        self.follow(state)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move everything to this step's place in the schedules."""
        self.follow(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the schedules where the training ended."""
        self.follow(state)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the state where the Trainer's next checkpoint takes it from."""
        self.remember(state)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Let the gap move rates; put the state where the next checkpoint takes it from."""
        # An evaluation outside the training has nothing to steer.
        if self.feedback and state.global_step < state.max_steps:
            follow_gap(self.regularization, self.feedback, gap_in(metrics, GAP))
        self.remember(state)

    def follow(self, state: TrainerState) -> None:
        """Set the progress of the regularization and of the penalties."""
        progress = min(1.0, state.global_step / max(1, state.max_steps))
        for part in (self.regularization, *self.penalties):
            part.set_progress(progress)

    def remember(self, state: TrainerState) -> None:
        """Write the regularization's state into the Trainer's."""
        if isinstance(state.stateful_callbacks, dict):
            state.stateful_callbacks[STATE_KEY] = self.regularization.state_dict()


class GapStopping(TrainerCallback, ExportableState):
    """Stops the training when it overfits: when the clean gap stays above a bound.

    The gap is what `RegularizedTrainerMixin` measures, validation loss minus the loss of a fixed probe of the
    training data, both in evaluation mode. It says when to stop, not which weights are best: for those set
    ``load_best_model_at_end=True, metric_for_best_model="eval_loss"``.

    Args:
        max_gap: bound in nats.
        patience: evaluations in a row above the bound before it stops.
        metric: the name of the gap among the metrics; with several evaluation sets, ``eval_NAME_gap``.

    Raises:
        InputError: for a patience below 1, or an evaluation without the gap.
    """

    def __init__(self, max_gap: float, *, patience: int = 1, metric: str = GAP) -> None:
        if patience < 1:
            raise InputError(f"patience is {patience}, but it counts evaluations and is at least 1.")
        self.max_gap, self.patience, self.metric = max_gap, patience, metric
        self.waited = 0
        self.others: set[str] = set()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take in one evaluation."""
        others = {name for name in metrics or {} if name.endswith("_gap")} - {self.metric}
        if others - self.others and self.metric not in (metrics or {}):
            # Of another one of several evaluation sets; once they come again, there is no such metric.
            self.others |= others
            return
        self.others.clear()
        self.waited = self.waited + 1 if gap_in(metrics, self.metric) > self.max_gap else 0
        if self.waited >= self.patience:
            control.should_training_stop = True

    def state(self) -> dict[str, dict]:
        """Return what ``restore_callback_states_from_checkpoint`` restores."""
        arguments = {"max_gap": self.max_gap, "patience": self.patience, "metric": self.metric}
        return {"args": arguments, "attributes": {"waited": self.waited}}


def gap_in(metrics: dict[str, float] | None, name: str) -> float:
    """Return the clean gap of an evaluation.

    Raises:
        InputError: when it was not measured.
    """
    if metrics is None or name not in metrics:
        raise InputError(
            f"The evaluation has no {name}; train with RegularizedTrainerMixin, a labelled train_dataset "
            "with a length, and probe above 0."
        )
    return metrics[name]
