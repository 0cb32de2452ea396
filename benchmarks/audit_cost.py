"""What `dropout audit FOLDER` takes for a GPT-2 of 124M parameters, beside a plain step of the same model.

Each side runs in a fresh process, in turn: it opens the saved folder, and then audits the model, or computes
one training forward and backward of the same inputs. Memory is the high-water mark over what the process
held before the folder was opened, with all code imported.
"""

import json
import subprocess
import sys
import tempfile
import time
from functools import cache
from statistics import median
from typing import Any

import torch

from .peak_memory import ROOT, high_water_mark
from .row import Budget, Measurement, Row

CODE = "from benchmarks.audit_cost import report; report({arguments})"
SIDES = ("step", "audit")


def report(folder: str, side: str) -> None:
    """Open a folder in this process, do one side's work, and write its CPU seconds and bytes of memory."""
    from transformer_dropout.audit import audit
    from transformer_dropout.audit.tiny_models import tiny_inputs, tiny_model
    from transformer_dropout.cli.target import open_target

    torch.set_num_threads(1)
    # Whatever is imported on the way is imported here, and no part of the memory.
    tiny = tiny_model("gpt2")
    audit(tiny, tiny_inputs(tiny))
    before = high_water_mark()
    opened = open_target(folder)
    seen, start = 0, time.process_time()
    if side == "audit":
        seen = len(audit(opened.model, opened.inputs, rebuild=opened.rebuild).events)
    else:
        opened.model.train()(**opened.inputs).logits.sum().backward()
    seconds = time.process_time() - start
    weights = sum(p.numel() * p.element_size() for p in opened.model.parameters())
    found = {"seconds": seconds, "bytes": high_water_mark() - before, "weights": weights, "seen": seen}
    sys.stdout.write(json.dumps(found))


def one(folder: str, side: str) -> dict[str, float]:
    """Return what a side took, in a process of its own."""
    code = CODE.format(arguments=f"{folder!r}, {side!r}")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@cache
def taken(rounds: int, quick: bool) -> list[dict[str, dict[str, float]]]:
    """Return what each side took in each round."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    small: dict[str, Any] = {"n_layer": 2, "n_embd": 48, "n_head": 4, "vocab_size": 99} if quick else {}
    with tempfile.TemporaryDirectory() as folder:
        GPT2LMHeadModel(GPT2Config(**small)).save_pretrained(folder)
        return [{side: one(folder, side) for side in SIDES} for _ in range(rounds)]


def gate(rounds: list[dict[str, dict[str, float]]]) -> str:
    """Check that every audit saw the same dropouts, and say how many."""
    (seen,) = {each["audit"]["seen"] for each in rounds}
    assert seen, "the audit saw nothing"
    return f"each audit saw {seen} random operations"


def steps(budget: Budget) -> Measurement:
    """Return how many plain steps an audit takes."""
    rounds = taken(budget.rounds, budget.quick)
    ratios = tuple(each["audit"]["seconds"] / each["step"]["seconds"] for each in rounds)
    return Measurement(
        value=median(ratios),
        per_round=ratios,
        seconds={side: median(each[side]["seconds"] for each in rounds) for side in SIDES},
        gate=gate(rounds),
        about={"weights_bytes": rounds[0]["step"]["weights"]},
    )


def memory(budget: Budget) -> Measurement:
    """Return the memory that opening and auditing take, in weights of the model."""
    rounds = taken(budget.rounds, budget.quick)
    shares = {side: tuple(each[side]["bytes"] / each[side]["weights"] for each in rounds) for side in SIDES}
    return Measurement(
        value=median(shares["audit"]),
        per_round=shares["audit"],
        gate=gate(rounds),
        about={"a training step takes": round(median(shares["step"]), 3)},
    )


NAME = "audit of a saved GPT-2, 124M parameters"
ROWS = (
    Row(name=f"{NAME}: its time / a plain step's", path="pure", target=3.0, at_least=False, measure=steps),
    Row(name=f"{NAME}: memory / its weights'", path="pure", target=1.1, at_least=False, measure=memory),
)
