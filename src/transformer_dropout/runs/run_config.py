"""What one run is: model, recipe, data, training, seed."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..errors import InputError
from ..recipe import Recipe
from ..schedules import Schedule, schedule_from_data
from ..tasks.language.data import DataConfig
from ..tasks.language.decoder import DecoderConfig
from ..tasks.language.published import from_published, is_published
from .checked import STRICT_KEYS, checked
from .yaml_file import dump_yaml, parse_value, read_yaml

# The version of the run config format; a file of a newer one is refused.
FORMAT = 1

# A schedule as a file says it: a number, text such as "0,0.3@0.5,0", or {linear: {start: 0.0, end: 0.1}}.
ScheduleData = float | str | dict[str, Any]
# Where in the training a schedule is checked.
CHECKED_AT = [n / 20 for n in range(21)]
# Regularizers beside the recipe and the weight decay. At their defaults they are left out of a record, so
# that one from before there were such keys keeps its fingerprint.
REGULARIZERS = ("l1", "l2", "elastic_net", "proximal_l1", "label_smoothing")


@dataclass(frozen=True, kw_only=True)
class EarlyStoppingConfig:
    """When to stop before the last step.

    Attributes:
        patience: evaluations in a row without a better validation loss.
        min_delta: how much lower, in nats, a loss must be to count as better.
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


def check_schedule(data: ScheduleData, where: str) -> None:
    """Raise InputError for what is no schedule, or one that leaves [0, infinity)."""
    schedule = schedule_from_data(data, where)
    for progress in CHECKED_AT:
        if not 0 <= schedule(progress) < math.inf:
            raise InputError(
                f"{where} is {schedule(progress)} at progress {progress}, but it is finite and at least 0."
            )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a run is trained and measured.

    Attributes:
        steps: optimizer steps.
        batch: windows in one forward, over all processes together.
        accumulation: forwards in one optimizer step.
        lr, min_lr: learning rate after warm-up and at ``decay_steps``.
        warmup_steps: steps of linear warm-up.
        decay_steps: the step at which the cosine reaches ``min_lr``; None for ``steps``.
        weight_decay: AdamW's decoupled decay, on matrices only; a number or a schedule.
        l1, l2, elastic_net: weights of penalties on the same matrices, numbers or schedules; 0 is none.
        proximal_l1: strength of the soft-thresholding after each step, which makes exact zeros.
        label_smoothing: share of the target that is spread over all tokens, in training only.
        beta1, beta2: AdamW's decay rates.
        clip: largest gradient norm; None for no clipping.
        precision: ``auto`` is bfloat16 autocast on a GPU that has it, else float32.
        compile: whether the model runs through ``torch.compile``.
        distributed: what ``torchrun`` with several processes uses.
        eval_every: steps between evaluations and checkpoints.
        eval_windows: validation windows of an evaluation, evenly spread; None for the whole split.
        probe_windows: training windows on which the clean training loss is measured.
        early_stopping: None to train to the last step.
        tensorboard: whether to write TensorBoard event files beside the records.
    """

    steps: int = 2000
    batch: int = 16
    accumulation: int = 1
    lr: float = 1e-3
    min_lr: float = 1e-4
    warmup_steps: int = 100
    decay_steps: int | None = None
    weight_decay: ScheduleData = 0.1
    l1: ScheduleData = 0.0
    l2: ScheduleData = 0.0
    elastic_net: ElasticNetConfig | None = None
    proximal_l1: ScheduleData = 0.0
    label_smoothing: float = 0.0
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

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulation", "eval_every", "probe_windows"):
            if getattr(self, name) < 1:
                raise InputError(f"training.{name} is {getattr(self, name)}, but it must be at least 1.")
        for name in ("eval_windows", "decay_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(
                    f"training.{name} is {getattr(self, name)}, but it must be at least 1, or null."
                )
        for name in ("weight_decay", "l1", "l2", "proximal_l1"):
            check_schedule(getattr(self, name), f"training.{name}")
        if not 0 <= self.label_smoothing < 1:
            raise InputError(
                f"training.label_smoothing is {self.label_smoothing}, but it is a share from 0 to below 1."
            )
        for name in ("lr", "min_lr", "warmup_steps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(
                    f"training.{name} is {getattr(self, name)}, but it is a finite number from 0 on."
                )
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"training.clip is {self.clip}, but it must be above 0; null is no clipping.")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"training.{name} is {getattr(self, name)}, but it lies in [0, 1).")
        if self.min_lr > self.lr:
            raise InputError(f"training.min_lr {self.min_lr} is above training.lr {self.lr}; swap them.")

    def schedule(self, name: str) -> Schedule:
        """Return the schedule of a key that may be a number or one."""
        return schedule_from_data(getattr(self, name), f"training.{name}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, complete: the same config and seed give the same run.

    Attributes:
        name: the arm's name in tables.
        format: version of this file format.
        seed: of the initial weights, the data order and the masks.
        model: the decoder's shape.
        recipe: the regularizers, as `Recipe.from_data` reads them.
        data: text and tokenizer.
        training: optimizer, length, evaluation.
    """

    __pydantic_config__ = STRICT_KEYS

    name: str = "run"
    format: int = FORMAT
    seed: int = 0
    model: DecoderConfig = field(default_factory=DecoderConfig)
    recipe: list[dict[str, Any]] = field(default_factory=list)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        if self.format > FORMAT:
            raise InputError(
                f"The run config has format {self.format}, but this version reads up to format {FORMAT}; "
                "upgrade with: pip install --upgrade transformer-dropout"
            )
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}, but it lies between 0 and {2**32 - 1}.")
        Recipe.from_data(self.recipe)

    def to_data(self) -> dict[str, Any]:
        """Return the config as plain data."""
        data, default = asdict(self), TrainingConfig()
        for name in REGULARIZERS:
            if getattr(self.training, name) == getattr(default, name):
                del data["training"][name]
        return data

    def to_yaml(self) -> str:
        """Return the config as YAML text that ``load_run_config`` reads."""
        return dump_yaml(self.to_data())

    def fingerprint(self) -> str:
        """Return a short digest that differs when anything in the config does."""
        return hashlib.sha256(json.dumps(self.to_data(), sort_keys=True).encode()).hexdigest()[:16]

    def slug(self) -> str:
        """Return the name as a folder name."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower()).strip("-.") or "run"


def load_run_config(path: Path, changes: Mapping[str, str] | None = None) -> RunConfig:
    """Read a run config in the project's own or in the published form.

    Args:
        path: a YAML file. A published config carries no name and takes the file's.
        changes: dotted keys of the project's form with new values as YAML text, applied last.

    Raises:
        InputError: for what does not fit; the message names file, line and the nearest known key.
    """
    file = read_yaml(path)
    data = {} if file.data is None else file.data
    if not isinstance(data, dict):
        raise InputError(
            f"{path} holds no mapping; a run config begins with keys such as 'name:' and 'model:'."
        )
    places = file.places
    if is_published(data):
        data, places = from_published(data, places, name=path.stem.replace("_", " ")), {}
    format = data.get("format", FORMAT)
    if isinstance(format, int) and format > FORMAT:
        # Before any other check: a newer format may have keys that this version does not know.
        return RunConfig(format=format)
    data.setdefault("name", path.stem)
    return config_from_data(data, changes or {}, places)


def config_from_data(
    data: dict[str, Any], changes: Mapping[str, str], places: dict | None = None
) -> RunConfig:
    """Return the run config of plain data with dotted changes applied."""
    places = dict(places or {})
    for key, text in changes.items():
        set_dotted(data, key, parse_value(text))
        changed = tuple(int(part) if part.isdigit() else part for part in key.split("."))
        # The file is not where a value on the command line stands.
        places = {path: place for path, place in places.items() if path[: len(changed)] != changed}
    refuse_pretrained(data.get("training"))
    return checked(RunConfig, data, places)


def refuse_pretrained(training: Any) -> None:
    """Raise InputError for what pulls to pre-trained weights: a run config trains from random ones."""
    for name in ("l2_sp", "l2sp", "mixout"):
        if isinstance(training, dict) and name in training:
            raise InputError(
                f"training.{name}: a run config trains from random weights, and this pulls to pre-trained "
                "ones; use `dropout finetune`, or td.L2SP and td.mixout_ in a loop of your own."
            )


def set_dotted(data: Any, dotted: str, value: Any) -> None:
    """Set ``a.b.0.c`` in nested mappings and lists, making mappings on the way.

    Raises:
        InputError: when the path leads through a value that has no keys, or past a list's end.
    """
    *parents, last = dotted.split(".")
    target = data
    for part in parents:
        target = descend(target, part, dotted)
    if isinstance(target, list):
        descend(target, last, dotted)
        target[int(last)] = value
    elif isinstance(target, dict):
        target[last] = value
    else:
        raise InputError(f"--set {dotted}: {parents[-1]!r} has no keys of its own.")


def descend(target: Any, part: str, dotted: str) -> Any:
    """Return the value at one part of a dotted key."""
    if isinstance(target, list):
        if not part.isdigit() or int(part) >= len(target):
            raise InputError(
                f"--set {dotted}: the list there has the positions 0 to {len(target) - 1}, not {part}."
            )
        return target[int(part)]
    if not isinstance(target, dict):
        raise InputError(f"--set {dotted}: there is no {part!r} to go into.")
    if target.get(part) is None:
        target[part] = {}
    return target[part]
