"""Time a training step of LearnedDropout against the equal-parameter baseline and the published build.

    python benchmarks/step.py [--quick] [--write]

All sides take turns in one process, one thread, CPU time; each ratio is the median over rounds of the ratio
within a round. The published side is `published_twin.PublishedTwin` with the default AdamW, eager; that it
computes the same loss is checked first. ``--write`` keeps the record in ``benchmarks/records/step.json``.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import transformer_dropout as td
from transformer_dropout.bench.published_twin import PublishedTwin
from transformer_dropout.training.decoder import Decoder, DecoderConfig
from transformer_dropout.training.record import machine, versions

VOCABULARY = 50_257
RECORDS = Path(__file__).parent / "records"


class Side:
    """One model with its optimizer, ready to take training steps."""

    def __init__(
        self, model: Decoder, regularization: td.Regularization, tokens: Tensor, fused: bool
    ) -> None:
        self.model, self.regularization, self.tokens = model, regularization, tokens
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=fused)

    def loss(self) -> Tensor:
        """Return the loss of one training forward, penalty included."""
        return self.model(self.tokens[:, :-1], self.tokens[:, 1:]) + self.regularization.penalty()

    def step(self) -> None:
        """Make one optimizer step."""
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def side(
    layer: type | None, width: int, heads: int, blocks: int, tokens: Tensor, *, fused: bool = True
) -> Side:
    """Build one side; its weights depend on the seed alone."""
    torch.manual_seed(0)
    model = Decoder(
        VOCABULARY, DecoderConfig(width=width, heads=heads, blocks=blocks, context=tokens.shape[1] - 1)
    )
    rules = [] if layer is None else [td.Rule("mlp_output", layer, heads=heads, weight=0.1)]
    return Side(model, td.regularize_(model, td.Recipe(rules)), tokens, fused)


def saved_bytes(one: Side) -> int:
    """Return the bytes that a forward saves for its backward, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in one.model.parameters()}
    seen: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = one.loss()
    total = sum(seen.values())
    loss.backward()
    one.optimizer.zero_grad()
    return total


def check_same(ours: Side, published: Side) -> None:
    """Stop when the published build does not compute what ours computes, in evaluation and in training."""
    ours.model.eval(), published.model.eval()
    with torch.no_grad():
        tokens = ours.tokens[:, 1:]
        torch.testing.assert_close(ours.model(tokens), published.model(tokens))
    ours.model.train(), published.model.train()
    losses = []
    for one in (ours, published):
        torch.manual_seed(1)
        losses.append(one.loss().detach())
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)


def seconds(action: Callable[[], None]) -> float:
    """Return the CPU seconds of one call."""
    start = time.process_time()
    action()
    return time.process_time() - start


def interleaved(sides: dict[str, Side], rounds: int) -> list[dict[str, float]]:
    """Time one step of each side in turn, so often, after one round to warm up."""
    times = []
    for _ in range(rounds + 1):
        times.append({name: seconds(one.step) for name, one in sides.items()})
    return times[1:]


def main() -> int:
    """Run the benchmark and print the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="4 blocks in place of 26")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="keep the record")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    blocks = 4 if arguments.quick else 26
    tokens = torch.randint(VOCABULARY, (4, 201), generator=torch.Generator().manual_seed(0))
    sides = {
        "baseline": side(None, 156, 12, blocks, tokens),
        "learned": side(td.LearnedDropout, 144, 9, blocks, tokens),
        "precomputed": side(td.PrecomputedLearnedDropout, 144, 9, blocks, tokens),
        "published": side(PublishedTwin, 144, 9, blocks, tokens, fused=False),
    }
    check_same(sides["learned"], sides["published"])
    memory = {name: saved_bytes(one) for name, one in sides.items()}
    times = interleaved(sides, arguments.rounds)
    pairs = {
        "LearnedDropout / equal-parameter baseline": ("learned", "baseline"),
        "pre-computed masks / equal-parameter baseline": ("precomputed", "baseline"),
        "published build / LearnedDropout": ("published", "learned"),
    }
    record = {
        "command": "python benchmarks/step.py" + (" --quick" if arguments.quick else ""),
        "shape": {"batch": 4, "context": 200, "blocks": blocks, "vocabulary": VOCABULARY, "dtype": "float32"},
        "rounds": arguments.rounds,
        "machine": machine(),
        "versions": versions(),
        "step_time_ratio": {
            name: round(statistics.median(t[a] / t[b] for t in times), 3) for name, (a, b) in pairs.items()
        },
        "saved_memory_ratio": {name: round(memory[a] / memory[b], 3) for name, (a, b) in pairs.items()},
        "step_seconds": {name: round(statistics.median(t[name] for t in times), 4) for name in sides},
        "saved_bytes": memory,
    }
    print(json.dumps(record, indent=1))
    if arguments.write:
        RECORDS.mkdir(exist_ok=True)
        (RECORDS / "step.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
