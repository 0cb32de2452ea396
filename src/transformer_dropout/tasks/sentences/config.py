"""What one fine-tuning run is: model, recipe, sentences, training, seed."""

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ...errors import InputError, check_choice
from ...runs.checked import STRICT_KEYS, checked
from ...runs.yaml_file import dump_yaml, read_yaml

FORMAT = 1

DType = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which pre-trained model.

    Attributes:
        source: its folder, or the name of the package that carries it.
        sha256: digest of its weights.
    """

    source: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which sentences.

    Attributes:
        files: by class, its file of one sentence a line.
        train_sentences: how many to train on, balanced by class; None for all.
        sha256: digests of the three splits, by name.
    """

    files: dict[str, str]
    train_sentences: int | None
    sha256: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a run is trained and measured.

    Attributes:
        steps: optimizer steps.
        eval_every: steps between evaluations; those of one epoch, usually.
        batch: sentences in one step; the last one of an epoch may have fewer.
        lr: learning rate after warm-up, from which it falls in a straight line to 0.
        warmup: share of the steps over which the learning rate rises.
        weight_decay: AdamW's decoupled decay, on matrices only.
        clip: largest gradient norm.
        max_tokens: longer sentences are cut.
        probe: training sentences on which the clean training loss is measured.
        dtype: "float32", or "bfloat16" for autocast, in training and evaluation; weights stay in float32.
    """

    steps: int
    eval_every: int
    batch: int = 32
    lr: float = 3e-5
    warmup: float = 0.06
    weight_decay: float = 0.01
    clip: float = 1.0
    max_tokens: int = 128
    probe: int = 256
    dtype: DType = "float32"

    def __post_init__(self) -> None:
        for name in ("steps", "eval_every", "batch", "max_tokens", "probe"):
            if getattr(self, name) < 1:
                raise InputError(f"training.{name} is {getattr(self, name)}, but it must be at least 1.")
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"training.{name} is {getattr(self, name)}, but it is a number above 0.")
        if not 0 <= self.warmup < 1:
            raise InputError(f"training.warmup is {self.warmup}, but it is a share in [0, 1).")
        if not 0 <= self.weight_decay < math.inf:
            raise InputError(f"training.weight_decay is {self.weight_decay}, but it is at least 0.")
        check_choice(self.dtype, get_args(DType), "training.dtype")


@dataclass(frozen=True, kw_only=True)
class FineTuningConfig:
    """One run, complete: the same config and seed give the same run.

    Attributes:
        name: the arm's name in tables.
        format: version of this file format.
        seed: of the new parameters, the data order and the masks.
        model: the pre-trained model.
        recipe: the arm, as `arms.parts_of` reads it: rules, and terms of the loss.
        data: the sentences.
        training: optimizer, length, evaluation.
    """

    __pydantic_config__ = STRICT_KEYS

    name: str
    format: int = FORMAT
    seed: int = 0
    model: ModelConfig
    recipe: list[dict[str, Any]] = field(default_factory=list)
    data: DataConfig
    training: TrainingConfig

    def __post_init__(self) -> None:
        if self.format > FORMAT:
            raise InputError(
                f"The run config has format {self.format}, but this version reads up to format {FORMAT}; "
                "upgrade with: pip install --upgrade transformer-dropout"
            )
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}, but it lies between 0 and {2**32 - 1}.")

    def to_yaml(self) -> str:
        """Return the config as YAML text that `load_config` reads."""
        return dump_yaml(asdict(self))

    def to_data(self) -> dict[str, Any]:
        """Return the config as plain data for records: what the digests fix, not where the files lie."""
        data = asdict(self)
        data["model"]["source"] = Path(self.model.source).name
        data["data"]["classes"] = list(data["data"].pop("files"))
        return data

    def fingerprint(self) -> str:
        """Return a short digest that differs when anything but the place of a file does."""
        return hashlib.sha256(json.dumps(self.to_data(), sort_keys=True).encode()).hexdigest()[:16]

    def slug(self) -> str:
        """Return the name as a folder name."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower()).strip("-.") or "run"


def load_config(path: Path) -> FineTuningConfig:
    """Read the config that a run folder holds.

    Raises:
        InputError: for what does not fit; the message names file, line and the nearest known key.
    """
    file = read_yaml(path)
    return checked(FineTuningConfig, file.data or {}, dict(file.places))
