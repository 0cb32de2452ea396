"""Regularize a model under Hugging Face's Trainer: run it with `python examples/hugging_face_trainer.py`."""

import tempfile
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import transformer_dropout as td
from transformer_dropout.integrations.hugging_face import GapStopping, RegularizedTrainerMixin


class MyTrainer(RegularizedTrainerMixin, Trainer):
    """Also in front of TRL's trainers, which inherit from Trainer."""


torch.manual_seed(0)
text = torch.frombuffer(bytearray(Path(__file__).read_bytes()), dtype=torch.uint8).long()
windows = [{"input_ids": window, "labels": window} for window in text.unfold(0, 32, 8)]

model = GPT2LMHeadModel(GPT2Config(vocab_size=256, n_positions=32, n_embd=32, n_layer=2, n_head=4))
recipe = td.Recipe(
    [
        td.Rule("mlp_output", td.LearnedDropout, heads=4, shift=1.0, weight=td.Linear(0.0, 0.1)),
        td.Rule("attention_output", td.Dropout, p=td.Cosine(0.3, 0.0)),
    ]
)
regularization = td.regularize_(model, recipe)

with tempfile.TemporaryDirectory() as folder:
    trainer = MyTrainer(
        model,
        TrainingArguments(
            folder,
            max_steps=30,
            learning_rate=3e-3,
            gradient_accumulation_steps=2,
            logging_steps=10,
            eval_strategy="steps",
            eval_steps=10,
            save_steps=10,
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
            report_to=[],
        ),
        regularization=regularization,
        penalties=[td.L2SP(model, 0.01)],
        train_dataset=windows[:-20],
        eval_dataset=windows[-20:],
        callbacks=[GapStopping(max_gap=1.0, patience=2)],
    )
    trainer.train()
    # The folder of a checkpoint holds the model and, beside it, the recipe and what its layers learned.
    loaded = GPT2LMHeadModel.from_pretrained(trainer.state.best_model_checkpoint)
    td.load_regularized(trainer.state.best_model_checkpoint, loaded)
    print(f"clean gap {trainer.evaluate()['eval_gap']:+.3f}")
