"""Measure what the gates of trained decoders do on the text they know and on text they do not.

    python experiments/claims/gates.py runs/gates

Reads the models of the finished comparison ``gates`` and writes ``gates/measured.json``; its table is in
`docs/results.md`.
"""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from transformer_dropout import functional
from transformer_dropout.layers import DropoutLayer
from transformer_dropout.runs.run_config import load_run_config
from transformer_dropout.tasks.language.decoder import Decoder
from transformer_dropout.tasks.language.saved_model import load_model

FOLDER = Path(__file__).parent
MEASURES = {
    "kept, training": "kept on training text",
    "kept, unseen": "kept on unseen text",
    "entropy, training": "entropy of a gate on training text, bits",
    "entropy, unseen": "on unseen text",
    "gates agree": "cosine of the gates' two gradients",
    "weights agree": "cosine of the other weights' two gradients",
}
Texts = list[tuple[Tensor, Tensor]]


def measured(folder: Path) -> dict[str, float]:
    """Return the measures of one run's model; none where it has no gates."""
    config = load_run_config(folder / "config.yaml")
    splits = config.find_task().prepare(config.model, config.data, None)
    model, _ = load_model(folder / "model")
    layers = [each for each in model.modules() if isinstance(each, DropoutLayer) and each.has_penalty]
    if not layers:
        return {}
    texts = {"training": batches(splits.train), "unseen": batches(splits.validation)}
    found = {}
    for name, text in texts.items():
        kept, entropy = what_gates_do(model, layers, text)
        found |= {f"kept, {name}": kept, f"entropy, {name}": entropy}
    gates = {id(one) for layer in layers for one in layer.parameters()}
    for name, wanted in (("gates", True), ("weights", False)):
        chosen = [one for one in model.parameters() if (id(one) in gates) is wanted]
        first, second = (gradient(model, chosen, text) for text in texts.values())
        found[f"{name} agree"] = torch.cosine_similarity(first, second, dim=0).item()
    return found


def batches(split, most: int = 600) -> Texts:
    """Return evenly spread windows of a text, 32 at a time."""
    chosen = torch.linspace(0, len(split) - 1, min(most, len(split))).long()
    return [split.inputs_and_targets(part) for part in chosen.split(32)]


@torch.no_grad()
def what_gates_do(model: Decoder, layers: Iterable[DropoutLayer], text: Texts) -> tuple[float, float]:
    """Return the mean probability of keeping and the mean entropy of a gate, in bits."""
    kept, entropy = [], []

    def note(keep_probability: Tensor, mask: Tensor) -> None:
        kept.append(keep_probability.double().mean())
        entropy.append(functional.entropy_penalty(keep_probability.double()) / torch.log(torch.tensor(2.0)))

    model.eval()
    for layer in layers:
        layer.observer = note
    for tokens, _ in text:
        model(tokens)
    for layer in layers:
        layer.observer = None
    return torch.stack(kept).mean().item(), torch.stack(entropy).mean().item()


def gradient(model: Decoder, parameters: list[nn.Parameter], text: Texts) -> Tensor:
    """Return the gradient of a text's loss in training mode, without penalties, as one vector."""
    torch.manual_seed(0)
    model.train()
    total = torch.zeros(sum(one.numel() for one in parameters))
    for tokens, targets in text:
        found = torch.autograd.grad(model(tokens, targets), parameters, allow_unused=True)
        parts = [
            torch.zeros_like(one) if own is None else own for one, own in zip(parameters, found, strict=True)
        ]
        total += torch.cat([part.flatten() for part in parts])
    return total


def table() -> str:
    """Return the mean measures of each arm, over its seeds."""
    found = json.loads((FOLDER / "gates" / "measured.json").read_text(encoding="utf-8"))
    shown: dict[str, Callable[[float], str]] = dict.fromkeys(MEASURES, lambda value: f"{value:.2f}")
    shown |= dict.fromkeys(
        ["kept, training", "kept, unseen"], lambda value: f"{value:.1%}".replace("%", " %")
    )
    lines = ["| arm | " + " | ".join(MEASURES.values()) + " |", "|---|" + "---:|" * len(MEASURES)]
    for arm, seeds in found.items():
        means = {name: sum(row[name] for row in seeds.values()) / len(seeds) for name in MEASURES}
        lines.append(f"| {arm} | " + " | ".join(shown[name](value) for name, value in means.items()) + " |")
    return "\n".join(lines) + "\n"


def main(runs: str) -> None:
    """Measure every run of the comparison."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for folder in sorted(Path(runs, "runs").glob("*/seed-*")):
        record, own = json.loads((folder / "run.json").read_text(encoding="utf-8")), measured(folder)
        if own:
            found.setdefault(record["name"], {})[record["seed"]] = own
            print(record["name"], record["seed"], own)
    text = json.dumps(found, indent=1) + "\n"
    (FOLDER / "gates" / "measured.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
