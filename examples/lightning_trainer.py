"""Regularize a model under Lightning's Trainer: run it with `python examples/lightning_trainer.py`."""

from pathlib import Path

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

import transformer_dropout as td
from transformer_dropout.integrations.lightning import GapStopping, RegularizationCallback


class LanguageModel(pl.LightningModule):
    """Nothing in the module knows of the regularization."""

    def __init__(self) -> None:
        super().__init__()
        config = GPT2Config(vocab_size=256, n_positions=32, n_embd=32, n_layer=2, n_head=4)
        self.model = GPT2LMHeadModel(config)

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        return self.model(batch, labels=batch).loss

    def validation_step(self, batch: torch.Tensor, index: int) -> None:
        self.log("val_loss", self.model(batch, labels=batch).loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(td.weight_decay_groups(self, 0.1), lr=3e-3)


pl.seed_everything(0, verbose=False)
text = torch.frombuffer(bytearray(Path(__file__).read_bytes()), dtype=torch.uint8).long()
windows = text.unfold(0, 32, 8)
train, validation = windows[:-20], windows[-20:]

module = LanguageModel()
recipe = td.Recipe(
    [
        td.Rule("mlp_output", td.LearnedDropout, heads=4, shift=1.0, weight=td.Linear(0.0, 0.1)),
        td.Rule("attention_output", td.Dropout, p=td.Cosine(0.3, 0.0)),
    ]
)
regularization = td.regularize_(module.model, recipe)
callback = RegularizationCallback(regularization, probe=train[:100].split(20))
trainer = pl.Trainer(
    max_epochs=3,
    accelerator="cpu",
    callbacks=[callback, GapStopping(max_gap=1.0, patience=2)],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
)
trainer.fit(module, DataLoader(train, batch_size=8, shuffle=True), DataLoader(validation, batch_size=20))
for name, value in sorted(trainer.callback_metrics.items()):
    print(f"{name} {value:.3f}")
