"""Measure how redundant the units of trained decoders are, and how smooth the decoders.

    python experiments/redundancy/measure.py runs/depth experiments/redundancy

Reads the models of a finished comparison and writes ``measured.json`` into the second folder; without
arguments it writes the table of what is there into this folder's README.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transformer_dropout.compare.statistics import difference_text, differences_to
from transformer_dropout.runs.run_config import load_run_config
from transformer_dropout.tasks.language.decoder import Decoder
from transformer_dropout.tasks.language.saved_model import load_model

FOLDER = Path(__file__).parent
MARKED = re.compile(r"(<!-- measure\.py -->\n).*?(<!-- end -->)", flags=re.DOTALL)
WITHOUT = "none"
DRAWS = 3
MEASURES = {
    "correlation": "mean absolute correlation of hidden units",
    "hidden removed": "loss added without 10 % of the hidden units",
    "channels removed": "loss added without 10 % of the MLPs' output channels",
    "noise": "loss added by noise on the embeddings",
}


def measured(folder: Path) -> dict[str, float]:
    """Return the measures of one run's model, on its validation text."""
    config = load_run_config(folder / "config.yaml")
    validation = config.find_task().prepare(config.model, config.data, None).validation
    model, _ = load_model(folder / "model")
    texts = [validation.inputs_and_targets(part) for part in torch.arange(len(validation)).split(256)]
    loss = loss_of(model, texts)
    hidden = [block.mlp.activation for block in model.blocks]
    outputs = [block.mlp for block in model.blocks]
    added = {
        "hidden removed": lambda seed: changed(hidden, without_units(seed)),
        "channels removed": lambda seed: changed(outputs, without_units(seed)),
        "noise": lambda seed: changed([model.embedding], with_noise(seed)),
    }
    found = {"loss": loss, "correlation": correlation(model, hidden, texts)}
    for name, change in added.items():
        losses = []
        for seed in range(DRAWS):
            with change(seed):
                losses.append(loss_of(model, texts))
        found[name] = sum(losses) / DRAWS - loss
    return found


@torch.no_grad()
def loss_of(model: Decoder, texts: list[tuple[Tensor, Tensor]]) -> float:
    """Return the mean cross-entropy of a text in nats a token."""
    sums = [model(tokens, targets).double() * targets.numel() for tokens, targets in texts]
    return (torch.stack(sums).sum() / sum(targets.numel() for _, targets in texts)).item()


@torch.no_grad()
def correlation(model: Decoder, parts: list[nn.Module], texts: list[tuple[Tensor, Tensor]]) -> float:
    """Return the mean absolute correlation of two units of a part's output, over pairs and parts."""
    seen: dict[nn.Module, list[Tensor]] = {part: [] for part in parts}

    def note(part: nn.Module, given: Any, out: Tensor) -> None:
        seen[part].append(out.flatten(0, -2))

    with changed(parts, note):
        for tokens, _ in texts:
            model(tokens)
    means = []
    for outputs in seen.values():
        units = torch.cat(outputs).double()
        together = torch.corrcoef(units[:, units.std(0) > 1e-6].T).abs()
        means.append((together.sum() - len(together)) / (len(together) * (len(together) - 1)))
    return torch.stack(means).mean().item()


Change = Callable[[nn.Module, Any, Tensor], Tensor | None]


@contextmanager
def changed(parts: list[nn.Module], change: Change) -> Iterator[None]:
    """Let the outputs of some parts be changed inside the ``with`` block."""
    hooks = [part.register_forward_hook(change) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def without_units(seed: int, share: float = 0.1) -> Change:
    """Return what sets a random share of the units of each part to 0, the same ones in every forward."""
    generator, masks = torch.Generator().manual_seed(seed), {}

    def change(part: nn.Module, given: Any, out: Tensor) -> Tensor:
        if part not in masks:
            width = out.shape[-1]
            removed = torch.randperm(width, generator=generator)[: round(share * width)]
            masks[part] = torch.ones(width).index_fill(0, removed, 0.0)
        return out * masks[part]

    return change


def with_noise(seed: int, size: float = 0.1) -> Change:
    """Return what adds Gaussian noise, of a share of the output's own root mean square."""
    generator = torch.Generator().manual_seed(seed)

    def change(part: nn.Module, given: Any, out: Tensor) -> Tensor:
        noise = torch.randn(out.shape, generator=generator)
        return out + size * out.square().mean().sqrt() * noise

    return change


def table() -> str:
    """Return each arm's measures, and its differences to no dropout."""
    found = json.loads((FOLDER / "measured.json").read_text(encoding="utf-8"))
    lines = ["| arm | " + " | ".join(MEASURES.values()) + " |", "|---|" + "---:|" * len(MEASURES)]
    by_seed = {arm: {int(seed): row for seed, row in seeds.items()} for arm, seeds in found.items()}
    cells: dict[str, list[str]] = {arm: [] for arm in found}
    for name in MEASURES:
        values = {arm: {seed: row[name] for seed, row in seeds.items()} for arm, seeds in by_seed.items()}
        others = {arm: value for arm, value in values.items() if arm != WITHOUT}
        differences = differences_to(values[WITHOUT], others)
        for arm, own in values.items():
            text = f"{sum(own.values()) / len(own):.3f}"
            if arm in differences:
                estimate = differences[arm].estimate
                mark = "**" if estimate.without_zero else ""
                text += f" ({mark}{difference_text(estimate)}{mark})"
            cells[arm].append(text)
    return "\n".join([*lines, *(f"| {arm} | " + " | ".join(own) + " |" for arm, own in cells.items())]) + "\n"


def main(runs: str | None = None, out: str | None = None) -> None:
    """Measure every run of a comparison, or write the table of what was measured."""
    if runs is not None and out is not None:
        found: dict[str, dict[int, dict[str, float]]] = {}
        for folder in sorted(Path(runs, "runs").glob("*/seed-*")):
            record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            found.setdefault(record["name"], {})[record["seed"]] = measured(folder)
            print(record["name"], record["seed"], found[record["name"]][record["seed"]])
        Path(out, "measured.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return
    page = FOLDER / "README.md"
    text = page.read_text(encoding="utf-8")
    page.write_text(MARKED.sub(lambda at: at[1] + table() + at[2], text), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
