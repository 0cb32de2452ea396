"""Regularize a Hugging Face model in a loop of your own: run it with `python examples/plain_loop.py`."""

from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import transformer_dropout as td

STEPS, BATCH, CONTEXT = 30, 8, 32

torch.manual_seed(0)
text = torch.frombuffer(bytearray(Path(__file__).read_bytes()), dtype=torch.uint8).long()
windows = text.unfold(0, CONTEXT, 8)
train, validation = windows[: -len(windows) // 5], windows[-len(windows) // 5 :]

model = GPT2LMHeadModel(GPT2Config(vocab_size=256, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=4))
recipe = td.Recipe(
    [
        td.Rule("mlp_output", td.LearnedDropout, heads=4, shift=1.0, weight=td.Linear(0.0, 0.1)),
        td.Rule("attention_output", td.Dropout, p=td.Cosine(0.3, 0.0), depth=td.Linear(0.5, 1.0)),
        td.Rule("attention_weights", td.Dropout, p=0.1),
    ]
)
regularization = td.regularize_(model, recipe)
optimizer = torch.optim.AdamW(td.weight_decay_groups(model, 0.1), lr=3e-3)


def clean_loss(examples: torch.Tensor) -> float:
    """Return the loss in evaluation mode."""
    model.eval()
    with torch.no_grad():
        return model(examples, labels=examples).loss.item()


for step in range(STEPS):
    regularization.set_progress(step / STEPS)
    model.train()
    batch = train[torch.randint(len(train), (BATCH,))]
    loss = model(batch, labels=batch).loss + regularization.penalty()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 10 == 9:
        train_loss, val_loss = clean_loss(train), clean_loss(validation)
        print(f"step {step + 1}: validation {val_loss:.3f}, clean gap {val_loss - train_loss:+.3f}")

regularization.set_progress(1.0)
print(regularization.report())
