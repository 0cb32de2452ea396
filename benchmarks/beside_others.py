"""A training step with dropout 0.2 beside a plain GPT script's and that of transformers' Trainer.

Both sides clip their gradients and decay their matrices. The Trainer's side is its ``training_step``, its
clipping, its optimizer and its scheduler, without the loop around them, which costs something too.
"""

import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import transformer_dropout as td
from transformer_dropout.tasks.language.decoder import Decoder, DecoderConfig

from .plain_gpt import PlainGPT, clipped_step, decayed_groups
from .product import PRODUCTS
from .rounds import timed_ratio
from .row import Budget, Measurement, Row
from .training_sides import built_decoder, random_tokens

P = 0.2
SITES = ("embedding", "attention_weights", "attention_output", "mlp_output")
# Of the default comparison, and of the published baseline: shape, vocabulary, windows of a batch.
SHAPES: dict[str, tuple[DecoderConfig, int, int]] = {
    "width 96": (DecoderConfig(width=96, heads=4, blocks=2, context=32), 256, 32),
    "26 blocks": (DecoderConfig(width=156, heads=12, blocks=26, context=200), 50_257, 4),
}


def our_step(model: Decoder, tokens: Tensor) -> Callable[[], None]:
    """Return a step of ours, as a run makes it."""
    td.regularize_(model, td.Recipe([td.Rule(site, td.Dropout, p=P) for site in SITES]))
    td.speed_up_(model)
    optimizer = torch.optim.AdamW(td.weight_decay_groups(model, 0.1), lr=1e-4, fused=True)
    return lambda: clipped_step(model, optimizer, model(tokens[:, :-1], tokens[:, 1:]))


def script_step(model: PlainGPT, tokens: Tensor) -> Callable[[], None]:
    """Return a step of the plain script."""
    optimizer = torch.optim.AdamW(decayed_groups(model), lr=1e-4)
    return lambda: clipped_step(model, optimizer, model(tokens[:, :-1], tokens[:, 1:]))


def trainer_step(shape: DecoderConfig, vocabulary: int, tokens: Tensor) -> tuple[Any, Callable[[], None]]:
    """Return a GPT-2 of a shape, and a step as transformers' Trainer makes it."""
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    settings: dict[str, Any] = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), P)
    settings |= {"n_embd": shape.width, "n_head": shape.heads, "n_layer": shape.blocks}
    settings |= {"n_positions": shape.context, "vocab_size": vocabulary}
    config = GPT2Config(bos_token_id=0, eos_token_id=0, **settings)
    model = GPT2LMHeadModel(config).train()
    arguments = TrainingArguments(
        output_dir=tempfile.gettempdir(), report_to=[], use_cpu=True, weight_decay=0.1, max_steps=100
    )
    trainer: Any = Trainer(model, arguments)
    trainer.current_gradient_accumulation_steps = 1
    trainer.create_optimizer_and_scheduler(num_training_steps=1000)
    # The model shifts the targets itself, so it is given as many tokens as ours predicts.
    batch = {"input_ids": tokens[:, :-1], "labels": tokens[:, :-1]}

    def step() -> None:
        trainer.training_step(model, dict(batch))
        torch.nn.utils.clip_grad_norm_(model.parameters(), arguments.max_grad_norm)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        model.zero_grad()

    return model, step


def beside_script(budget: Budget, *, name: str) -> Measurement:
    """Time a step of the plain script and ours, from the same weights."""
    shape, vocabulary, batch = SHAPES[name]
    ours, theirs = built_decoder(vocabulary, shape), PlainGPT(vocabulary, shape, P)
    theirs.load_state_dict(ours.state_dict())
    tokens = random_tokens(vocabulary, batch, shape)
    losses = [model.eval()(tokens[:, :-1], tokens[:, 1:]).item() for model in (ours, theirs)]
    off = abs(losses[0] / losses[1] - 1)
    assert off < 1e-5, f"without dropout the losses are {losses}"
    sides = {"reference": script_step(theirs.train(), tokens), "ours": our_step(ours.train(), tokens)}
    gate = f"without dropout losses equal within {off:.0e}"
    return timed_ratio(sides, budget, calls=calls(budget, name), gate=gate, about=about(name))


def beside_trainer(budget: Budget, *, name: str) -> Measurement:
    """Time a step of transformers' Trainer and ours, of as many parameters."""
    shape, vocabulary, batch = SHAPES[name]
    shape = DecoderConfig(**{**vars(shape), "bias": True})
    ours, tokens = built_decoder(vocabulary, shape), random_tokens(vocabulary, batch, shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, step = trainer_step(shape, vocabulary, tokens)
    sizes = [sum(p.numel() for p in model.parameters()) for model in (ours, theirs)]
    assert sizes[0] == sizes[1], f"the models have {sizes} parameters"
    sides = {"reference": step, "ours": our_step(ours.train(), tokens)}
    gate = f"both have {sizes[0]:,} parameters"
    return timed_ratio(sides, budget, calls=calls(budget, name), gate=gate, about=about(name))


def calls(budget: Budget, name: str) -> int:
    """Return how many steps make one turn: the small model's are short."""
    return 1 if budget.quick or name != "width 96" else 20


def about(name: str) -> dict[str, Any]:
    """Return what decides the numbers."""
    shape, vocabulary, batch = SHAPES[name]
    return {"shape": {"batch": batch, **vars(shape), "vocabulary": vocabulary}, "p": P, "dtype": "float32"}


SIDES = {"plain GPT script": beside_script, "transformers' Trainer": beside_trainer}
# To hold where PyTorch's product is as fast as oneDNN's.
TARGETS = {
    ("plain GPT script", "width 96"): 1.1,
    ("plain GPT script", "26 blocks"): 1.9,
    ("transformers' Trainer", "width 96"): 1.25,
    ("transformers' Trainer", "26 blocks"): 2.0,
}
ROWS = tuple(
    Row(
        name=f"training step with dropout 0.2, {name}: {side} / ours",
        path="native",
        target=target,
        measure=partial(SIDES[side], name=name),
        obstacle=PRODUCTS,
    )
    for (side, name), target in TARGETS.items()
)
