"""What our verbs cost or save on models of transformers: a step after the verb by the model's own step.

Width 384, six blocks, the model's own dropout 0.1, forward, backward and fused AdamW on both sides.

What ``speed_up_`` can gain is the row of a single product (`product`): where PyTorch's own is as fast as
oneDNN's, it may cost nothing and no more is asked. A learned mask on every MLP adds an attention of its own,
three products of width by width: counted in products a step is 1.29 times as long (BERT's 1.28), and the
targets ask that it cost no more than that, whatever else the layer does.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import transformer_dropout as td

from .rounds import timed_ratio
from .row import Budget, Measurement, Row

P, VOCABULARY, BATCH, TOKENS = 0.1, 1000, 8, 128
COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
KINDS = ("embedding", "attention_weights", "attention_output", "mlp_output")
BERT_LIKE = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6}


def built(family: str, blocks: int) -> Any:
    """Return a random model of a family in training mode."""
    import transformers

    if family == "gpt2":
        sizes = {"n_embd": 384, "n_head": 6, "n_layer": blocks, "n_positions": TOKENS}
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**COMMON, **sizes)).train()
    sizes = {**BERT_LIKE, "num_hidden_layers": blocks}
    if family == "llama":
        config = transformers.LlamaConfig(**COMMON, **sizes, intermediate_size=1024, attention_dropout=P)
        return transformers.LlamaForCausalLM(config).train()
    config = transformers.BertConfig(**COMMON, **sizes, intermediate_size=1536)
    return transformers.BertForMaskedLM(config).train()


def own_rates(model: nn.Module) -> None:
    """Put layers of ours in the place of the model's own dropout, at equal rates."""
    found = {site.kind for site in td.find_sites(model)}
    kinds = [kind for kind in KINDS if kind in found]
    td.regularize_(model, td.Recipe([td.Rule(kind, td.Dropout, p=P) for kind in kinds]))


def attention_rate(model: nn.Module) -> None:
    """The same for Llama, which has a rate at the attention weights alone."""
    td.regularize_(model, td.Recipe([td.Rule("attention_weights", td.Dropout, p=P)]))


def learned_masks(model: nn.Module) -> None:
    """Put LearnedDropout on the output of every MLP."""
    td.regularize_(model, td.Recipe([td.Rule("mlp_output", td.LearnedDropout, heads=6, weight=0.1)]))


def products_after(family: str, verb: Callable[[nn.Module], object]) -> float:
    """Return how many times the FLOPs of its own step a model's step takes after a verb."""
    own = built(family, 6)
    changed = copy.deepcopy(own)
    verb(changed)
    # Of one text, since each takes as many.
    tokens = torch.zeros((1, TOKENS), dtype=torch.long)
    flops = []
    for model in (own, changed):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(input_ids=tokens, labels=tokens).loss.backward()
        flops.append(counter.get_total_flops())
    return flops[1] / flops[0]


def step_of(model: Any, tokens: torch.Tensor) -> Callable[[], None]:
    """Return one training step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def after_verb(budget: Budget, *, family: str, verb: Callable[[nn.Module], object]) -> Measurement:
    """Time a model's step after a verb, and its own."""
    blocks = 2 if budget.quick else 6
    torch.manual_seed(0)
    own = built(family, blocks)
    changed = copy.deepcopy(own)
    verb(changed)
    tokens = torch.randint(VOCABULARY, (BATCH, TOKENS))
    with torch.no_grad():
        losses = [model(input_ids=tokens, labels=tokens).loss.item() for model in (own, changed)]
    # Different masks of one rate, or a learned mask that keeps nearly all at first.
    assert abs(losses[0] / losses[1] - 1) < 0.1, f"the losses are {losses}"
    ours = step_of(changed, tokens)
    measured = timed_ratio(
        {"own": step_of(own, tokens), "ours": ours},
        budget,
        over="ours",
        under="own",
        gate=f"losses of the first step {losses[0]:.2f} and {losses[1]:.2f}",
        about={"width": 384, "blocks": blocks, "batch": BATCH, "tokens": TOKENS, "vocabulary": VOCABULARY},
    )
    # What is profiled where a target is missed.
    return replace(measured, action=ours)


# 1.00, to the digits of the table.
EQUAL = 1.005
SAME_PRODUCTS = "PyTorch's own products, which are about as fast as oneDNN's here: see the row of one."
ITS_ATTENTION = "the products of the masks' own attention."


def row(
    family: str, what: str, verb: Callable[[nn.Module], object], target: float, obstacle: str = ""
) -> Row:
    """Return one row; the target is the most that our step may take of the model's own."""
    return Row(
        name=f"step of transformers' {family}, width 384: {what} / its own",
        path="native",
        target=target,
        at_least=False,
        measure=partial(after_verb, family=family, verb=verb),
        obstacle=obstacle,
    )


ROWS = (
    row("gpt2", "after speed_up_", td.speed_up_, 1.0, SAME_PRODUCTS),
    row("bert", "after speed_up_", td.speed_up_, 1.0, SAME_PRODUCTS),
    row("llama", "after speed_up_", td.speed_up_, 1.0, SAME_PRODUCTS),
    row("gpt2", "dropout at equal rates by regularize_", own_rates, EQUAL),
    row("bert", "dropout at equal rates by regularize_", own_rates, EQUAL),
    row("llama", "dropout at equal rates by regularize_", attention_rate, EQUAL),
    row("gpt2", "LearnedDropout on every MLP", learned_masks, 1.29, ITS_ATTENTION),
    row("bert", "LearnedDropout on every MLP", learned_masks, 1.28, ITS_ATTENTION),
    row("llama", "LearnedDropout on every MLP", learned_masks, 1.29, ITS_ATTENTION),
)
