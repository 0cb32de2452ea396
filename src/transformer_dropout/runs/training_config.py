"""How a run is trained and measured, whatever it trains."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import InputError
from ..schedule_data import schedule_from_data
from ..schedules import Schedule
from .sections import NEWER

# A schedule as a file says it: a number, text such as "0,0.3@0.5,0", or {linear: {start: 0.0, end: 0.1}}.
ScheduleData = float | str | dict[str, Any]
# Regularizers beside the recipe and the weight decay.
REGULARIZERS = (
    "l1",
    "l2",
    "elastic_net",
    "proximal_l1",
    "label_smoothing",
    "rdrop",
    "l2_sp",
    "ema",
    "token_noise",
    "held_out",
    "cross_fit",
    "self_tuned",
    "experts",
)


@dataclass(frozen=True, kw_only=True)
class EarlyStoppingConfig:
    """When to stop before the last step.

    Attributes:
        patience: evaluations in a row in which the task's first metric was no better on validation.
        min_delta: how much better it must be to count, in its own unit.
    """

    patience: int = 5
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if self.patience < 1 or self.min_delta < 0:
            raise InputError(
                "training.early_stopping needs patience of at least 1 and min_delta of at least 0."
            )


@dataclass(frozen=True, kw_only=True)
class ElasticNetConfig:
    """L1 and L2 together, as `td.ElasticNet` takes them.

    Attributes:
        weight: strength, a number or a schedule.
        l1_ratio: share of the absolute values, between 0 and 1.
    """

    weight: ScheduleData
    l1_ratio: float = 0.5

    def __post_init__(self) -> None:
        check_schedule(self.weight, "training.elastic_net.weight")
        if not 0 <= self.l1_ratio <= 1:
            raise InputError(f"training.elastic_net.l1_ratio is {self.l1_ratio}; it is a share from 0 to 1.")


@dataclass(frozen=True, kw_only=True)
class SelfTunedConfig:
    """Dropout rates that are tuned within the run, as `td.SelfTuned` does it.

    Attributes:
        share: of the training split that is held out for it.
        every: steps between two measurements; one costs about three steps.
        step: how far the logit of a rate moves in one.
        delta: how far it is moved to measure.
    """

    share: float = 0.1
    every: int = 10
    step: float = 0.1
    delta: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise InputError(
                f"training.self_tuned.share is {self.share}, but it lies strictly between 0 and 1, as 0.1."
            )
        for name in ("every", "step", "delta"):
            if not getattr(self, name) > 0:
                raise InputError(
                    f"training.self_tuned.{name} is {getattr(self, name)}, but it must be above 0."
                )


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """A mixture of experts in place of each MLP, as `td.mixture_of_experts_` makes it.

    Attributes:
        experts: how many an MLP becomes.
        top_k: how many of them act on a token.
        weight: of the load-balancing loss; a number or a schedule.
        select: a Unix pattern of the MLPs' paths.
    """

    experts: int = 4
    top_k: int = 1
    weight: ScheduleData = 0.01
    select: str = "*.mlp"

    def __post_init__(self) -> None:
        check_schedule(self.weight, "training.experts.weight")
        if not 1 <= self.top_k <= self.experts:
            raise InputError(
                f"training.experts.top_k is {self.top_k} of {self.experts} experts; write a number from 1 to "
                f"{self.experts}."
            )

    @property
    def schedule(self) -> Schedule:
        """The weight of the load-balancing loss over training."""
        return schedule_from_data(self.weight, "training.experts.weight")


def check_schedule(data: ScheduleData, where: str) -> None:
    """Raise InputError for what is no schedule, or one that leaves [0, infinity)."""
    schedule = schedule_from_data(data, where)
    for value in schedule.bounds():
        if not 0 <= value < math.inf:
            raise InputError(f"{where} becomes {value:g}, but it is finite and at least 0 all the time.")


def check_share(data: ScheduleData, where: str) -> None:
    """Raise InputError for what is no schedule, or one that leaves [0, 1)."""
    check_schedule(data, where)
    highest = schedule_from_data(data, where).bounds()[1]
    if not highest < 1:
        raise InputError(f"{where} becomes {highest:g}, but it is a share from 0 to below 1.")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a run is trained and measured.

    Attributes:
        steps: optimizer steps.
        batch: examples in one forward, over all processes together.
        accumulation: forwards in one optimizer step.
        lr: learning rate after warm-up: a number, from which a cosine falls to ``min_lr``, or a schedule.
        min_lr: where that cosine ends; a schedule does not read it.
        warmup_steps: steps of linear warm-up.
        decay_steps: the step at which the cosine or the schedule ends; None for ``steps``.
        weight_decay: AdamW's decoupled decay, on matrices only; a number or a schedule.
        l1, l2, elastic_net: weights of penalties on the same matrices, numbers or schedules; 0 is none.
        proximal_l1: strength of the soft-thresholding after each step, which makes exact zeros.
        label_smoothing: share of the target that is spread over all classes, in training only.
        rdrop: weight of R-Drop's divergence between two passes; a number or a schedule, 0 is one pass.
        rdrop_view: what makes the second view differ: ``dropout`` other masks; ``token_noise`` the noise of
            that key, which the first view lacks; ``learned`` masks, where the first has the plain dropout
            that they are anchored to; ``adversarial`` the same, its divergence one-sided and not halved.
        rdrop_blocks: the last so many blocks alone see both views, in one forward; None for two passes.
        l2_sp: weight of a pull to the weights at the start, for fine-tuning; a number or a schedule.
        ema: decay of the averaged weights that are evaluated and kept; a number or a schedule, 0 is none.
        token_noise: share of the input tokens that random ones replace in training; a number or a schedule.
        held_out: share of the training split on which the gates of learned masks, and nothing else, take
            their gradient; 0 for none.
        held_out_every: steps between two gradients of those gates.
        cross_fit: whether each gate of `CrossFittedDropout` learns from the half of the training split that
            the other one masks.
        self_tuned: None for rates as the recipe says.
        experts: None for MLPs as the model has them.
        beta1, beta2: AdamW's decay rates.
        clip: largest gradient norm; None for no clipping.
        precision: ``auto`` is bfloat16 autocast on a GPU that has it, else float32.
        compile: whether the model runs through ``torch.compile``.
        distributed: what ``torchrun`` with several processes uses.
        eval_every: steps between evaluations and checkpoints.
        eval_windows: validation examples of an evaluation, evenly spread; None for the whole split.
        probe_windows: training examples on which the clean training loss is measured.
        early_stopping: None to train to the last step.
        folds, fold: for a cross-validation, in how many parts the training split is divided, and which of
            them validates in place of the validation split; 0 for none.
        keep_checkpoints: how many of the newest checkpoints are kept, at least 2; `dropout show` goes through
            them.
        tensorboard: the same as ``report_to: [tensorboard]``.
        report_to: who is told every number beside the records; None for nobody.
    """

    steps: int = 2000
    batch: int = 16
    accumulation: int = 1
    lr: ScheduleData = 1e-3
    min_lr: float = 1e-4
    warmup_steps: int = 100
    decay_steps: int | None = None
    weight_decay: ScheduleData = 0.1
    l1: ScheduleData = field(default=0.0, metadata=NEWER)
    l2: ScheduleData = field(default=0.0, metadata=NEWER)
    elastic_net: ElasticNetConfig | None = field(default=None, metadata=NEWER)
    proximal_l1: ScheduleData = field(default=0.0, metadata=NEWER)
    label_smoothing: float = field(default=0.0, metadata=NEWER)
    rdrop: ScheduleData = field(default=0.0, metadata=NEWER)
    rdrop_view: Literal["dropout", "token_noise", "learned", "adversarial"] = field(
        default="dropout", metadata=NEWER
    )
    rdrop_blocks: int | None = field(default=None, metadata=NEWER)
    l2_sp: ScheduleData = field(default=0.0, metadata=NEWER)
    ema: ScheduleData = field(default=0.0, metadata=NEWER)
    token_noise: ScheduleData = field(default=0.0, metadata=NEWER)
    held_out: float = field(default=0.0, metadata=NEWER)
    held_out_every: int = field(default=1, metadata=NEWER)
    cross_fit: bool = field(default=False, metadata=NEWER)
    self_tuned: SelfTunedConfig | None = field(default=None, metadata=NEWER)
    experts: ExpertsConfig | None = field(default=None, metadata=NEWER)
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float | None = 1.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    distributed: Literal["ddp", "fsdp"] = "ddp"
    eval_every: int = 200
    eval_windows: int | None = None
    probe_windows: int = 256
    early_stopping: EarlyStoppingConfig | None = None
    tensorboard: bool = False
    folds: int = field(default=0, metadata=NEWER)
    fold: int = field(default=0, metadata=NEWER)
    keep_checkpoints: int = field(default=2, metadata=NEWER)
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] | None = field(default=None, metadata=NEWER)

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulation", "eval_every", "probe_windows"):
            if getattr(self, name) < 1:
                raise InputError(f"training.{name} is {getattr(self, name)}, but it must be at least 1.")
        for name in ("eval_windows", "decay_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(
                    f"training.{name} is {getattr(self, name)}, but it must be at least 1, or null."
                )
        for name in ("lr", "weight_decay", "l1", "l2", "proximal_l1", "rdrop", "l2_sp"):
            check_schedule(getattr(self, name), f"training.{name}")
        for name in ("ema", "token_noise"):
            check_share(getattr(self, name), f"training.{name}")
        if not 0 <= self.label_smoothing < 1:
            raise InputError(
                f"training.label_smoothing is {self.label_smoothing}, but it is a share from 0 to below 1."
            )
        for name in ("min_lr", "warmup_steps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(
                    f"training.{name} is {getattr(self, name)}, but it is a finite number from 0 on."
                )
        if self.folds == 1 or self.folds < 0 or not 0 <= self.fold < max(1, self.folds):
            raise InputError(
                f"training.folds is {self.folds} and training.fold {self.fold}; there are 2 folds or more, "
                "counted from 0, or folds: 0."
            )
        self.check_views()
        if self.keep_checkpoints < 2:
            raise InputError(
                f"training.keep_checkpoints is {self.keep_checkpoints}, but it must be at least 2: where the "
                "newest is damaged, a run goes on from the one before."
            )
        self.check_held_out()
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"training.clip is {self.clip}, but it must be above 0; null is no clipping.")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"training.{name} is {getattr(self, name)}, but it lies in [0, 1).")
        if isinstance(self.lr, int | float) and self.min_lr > self.lr:
            raise InputError(f"training.min_lr {self.min_lr} is above training.lr {self.lr}; swap them.")

    def check_views(self) -> None:
        """Refuse views of R-Drop that there cannot be."""
        if (self.rdrop_view != "dropout" or self.rdrop_blocks is not None) and not self.rdrop:
            raise InputError(
                "training.rdrop_view and training.rdrop_blocks need a weight: training.rdrop: 1.0."
            )
        if self.rdrop_view == "token_noise" and not self.token_noise:
            raise InputError("training.rdrop_view: token_noise needs a rate: training.token_noise: 0.05.")
        if self.rdrop_blocks is None:
            return
        if self.rdrop_blocks < 1:
            raise InputError(f"training.rdrop_blocks is {self.rdrop_blocks}, but it is at least 1, or null.")
        if self.rdrop_view != "dropout" or self.compile:
            raise InputError(
                "training.rdrop_blocks goes with rdrop_view: dropout and compile: false; take it out."
            )

    def check_held_out(self) -> None:
        """Refuse a held-out part that there cannot be."""
        if not 0 <= self.held_out < 1:
            raise InputError(f"training.held_out is {self.held_out}, but it is a share from 0 to below 1.")
        if self.held_out_every < 1:
            raise InputError(f"training.held_out_every is {self.held_out_every}, but it must be at least 1.")
        if self.held_out_every > 1 and not (self.held_out or self.cross_fit):
            raise InputError("training.held_out_every needs a share: training.held_out: 0.1.")
        if len(self.trained_apart) > 1:
            names = " and ".join(f"training.{key}" for key in self.trained_apart)
            raise InputError(f"{names} do not go together; take one out.")
        if self.cross_fit and self.batch % 2:
            raise InputError(
                "training.cross_fit takes a half of each batch from either half of the training split; "
                f"training.batch {self.batch} must be even."
            )

    @property
    def trained_apart(self) -> list[str]:
        """The keys that are set by which gates or rates learn apart from the weights."""
        return [key for key in ("held_out", "cross_fit", "self_tuned") if getattr(self, key)]

    def schedule(self, name: str) -> Schedule:
        """Return the schedule of a key that may be a number or one."""
        return schedule_from_data(getattr(self, name), f"training.{name}")
