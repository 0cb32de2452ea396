"""The settings, each with its methods: ``python experiments/tuned/settings.py``.

Writes ``SETTING/configs/*.yaml`` and ``SETTING/space.yaml``, which ``dropout tune`` reads.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from methods import BLOCK, Method, of_fine_tuning, of_perceptron, of_text, of_vision_transformer

from transformer_dropout.runs.arm_names import folder_name
from transformer_dropout.yaml_file import dump_yaml

HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One model on one data set.

    Attributes:
        task: as run configs name it.
        model, data, training: those of every arm.
        lr: between what the learning rate is searched.
        methods: the arms.
    """

    task: str
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    training: Mapping[str, Any]
    lr: Mapping[str, Any]
    methods: Sequence[Method]

    def config(self, method: Method) -> dict[str, Any]:
        """Return the run config of a method."""
        return {
            "name": method.name,
            "task": self.task,
            "model": dict(self.model),
            "recipe": method.recipe,
            "data": {**self.data, **method.data},
            "training": {**self.training, **method.training},
        }

    def space(self) -> dict[str, Any]:
        """Return what is searched."""
        return {
            "settings": {"training.lr": dict(self.lr)},
            "methods": {method.name: dict(method.searched) for method in self.methods},
        }


FINE = {
    "steps": 150,
    "batch": 8,
    "min_lr": 0.0,
    "warmup_steps": 8,
    "weight_decay": 0.01,
    "beta2": 0.999,
    "precision": "bfloat16",
    "eval_every": 50,
    "probe_windows": 100,
}
DIGITS = {"steps": 400, "batch": 32, "min_lr": 1e-5, "eval_every": 80, "weight_decay": 0.01}
SETTINGS = {
    "digits_mlp": Setting(
        task="images",
        model={},
        data={"train_images": 300},
        training=DIGITS,
        lr={"low": 3e-4, "high": 1e-2, "log": True},
        methods=of_perceptron(),
    ),
    "digits_vit": Setting(
        task="images_vit",
        model={},
        data={"train_images": 300},
        training=DIGITS,
        lr={"low": 3e-4, "high": 1e-2, "log": True},
        methods=of_vision_transformer(),
    ),
    "docstrings": Setting(
        task="language",
        model={"width": 96, "heads": 4, "blocks": 2, "context": 32},
        data={
            "source": "stdlib-docs",
            "tokenizer": "bytes",
            "train_tokens": 20_000,
            "validation_tokens": 40_000,
        },
        training={"steps": 500, "batch": 16, "min_lr": 1e-4, "eval_every": 125, "weight_decay": 0.1},
        lr={"low": 1e-3, "high": 1e-2, "log": True},
        methods=of_text(),
    ),
    "sentences": Setting(
        task="sentences",
        model={"source": "runs/three_blocks"},
        data={
            "classes": {name: f"../shared/data/rt-polarity.{name}" for name in ("neg", "pos")},
            "train_sentences": 200,
        },
        training={**FINE, "eval_windows": 200},
        lr={"low": 3e-5, "high": 1e-3, "log": True},
        methods=of_fine_tuning((*BLOCK, "classifier"), {"steps": 75, "eval_every": 25}, heads=12),
    ),
    "causal_lm": Setting(
        task="causal_lm",
        model={"source": "runs/small_gpt2"},
        data={"source": "stdlib-docs", "train_examples": 100},
        training={**FINE, "eval_windows": 100},
        lr={"low": 1e-4, "high": 3e-3, "log": True},
        methods=of_fine_tuning(BLOCK, {"steps": 75, "eval_every": 25}, heads=4),
    ),
}


def files(name: str) -> dict[Path, str]:
    """Return the files of a setting, with what stands in them."""
    setting, folder = SETTINGS[name], HERE / name
    plain = {method.name: json.loads(json.dumps(setting.config(method))) for method in setting.methods}
    configs = {
        folder / "configs" / f"{folder_name(arm, 'run')}.yaml": dump_yaml(own) for arm, own in plain.items()
    }
    return {folder / "space.yaml": dump_yaml(json.loads(json.dumps(setting.space()))), **configs}


if __name__ == "__main__":
    for setting in SETTINGS:
        for path, text in files(setting).items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
