"""Hugging Face's Trainer with a layer of a user's own: saved, resumed and loaded by its import path."""

import sys
import types

import pytest
import torch
import transformers
from transformers import Trainer, TrainingArguments

import transformer_dropout as td
from transformer_dropout.audit.tiny_models import tiny_model
from transformer_dropout.integrations.hugging_face import RegularizedTrainerMixin


class Scaled(td.layers.RateLayer):
    """Dropout with a learned scale a channel."""

    def __init__(self, width: int, p: float = 0.5) -> None:
        super().__init__(p)
        self.scale = torch.nn.Parameter(torch.ones(width))

    def forward(self, x):
        return td.functional.dropout(x, self.current_rate()) * self.scale if self.training else x * self.scale


class MyTrainer(RegularizedTrainerMixin, Trainer):
    """What a user writes."""


RECIPE = td.Recipe([td.Rule("mlp_output", Scaled, p=td.Linear(0.3, 0.0))])


@pytest.fixture(autouse=True)
def imported(monkeypatch):
    """pytest imports test files without listing them, and Trainers write to the console."""
    module = types.ModuleType(__name__)
    vars(module)["Scaled"] = Scaled
    monkeypatch.setitem(sys.modules, __name__, module)
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


def trainer(folder):
    tokens = torch.randint(3, 64, (8, 8), generator=torch.Generator().manual_seed(1))
    arguments = TrainingArguments(
        str(folder),
        max_steps=4,
        save_steps=2,
        learning_rate=0.05,
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    model = tiny_model("llama")
    examples = [{"input_ids": row, "labels": row} for row in tokens]
    handle = td.regularize_(model, RECIPE)
    return MyTrainer(model, arguments, regularization=handle, train_dataset=examples, probe=0)


def scales(handle):
    return torch.stack([placed.layer.scale.detach() for placed in handle.placed])


def test_a_run_with_an_own_layer_is_resumed_and_loaded(tmp_path):
    whole = trainer(tmp_path)
    whole.train()
    assert f"layer: {__name__}:Scaled" in (tmp_path / "checkpoint-2/regularization.yaml").read_text()
    expected = scales(whole.regularization)
    assert not torch.equal(expected, torch.ones_like(expected))
    resumed = trainer(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert torch.equal(scales(resumed.regularization), expected)
    loaded = td.load_regularized(tmp_path / "checkpoint-4", tiny_model("llama"))
    assert torch.equal(scales(loaded), expected)


def test_a_checkpoint_whose_layer_is_not_imported_says_what_to_import(tmp_path, monkeypatch):
    td.save_recipe(tmp_path, RECIPE)
    monkeypatch.delitem(sys.modules, __name__)
    with pytest.raises(td.InputError, match=f"write import {__name__} before it is read"):
        td.load_regularized(tmp_path, tiny_model("llama"))
