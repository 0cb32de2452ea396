"""Measure the table of models: ``python docs/families.py [--keep FILE] [NAME ...] > docs/families.md``."""

import argparse
import json
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from family_models import Build, known_models
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import transformer_dropout as td
from transformer_dropout.sites import KINDS, Site, find_sites
from transformer_dropout.sites.observation.inputs import call
from transformer_dropout.sites.observation.lineage import tensors_in
from transformer_dropout.sites.observation.restore import unchanged
from transformer_dropout.sites.reading.graph import Recorder
from transformer_dropout.sites.reading.rates import rates_of
from transformer_dropout.surgery.check import checks_of

OWN_RATE = 0.3
SECONDS = 120
INTRODUCTION = """# Models

Each row is measured on a tiny random model whose own rates are all {own}, with
{versions}: every model type of transformers
that builds small from its config, torch's own layers, models as people write them, and, where they are
installed, architectures of timm and x-transformers.
Make the page anew with

    python docs/families.py > docs/families.md

* A kind's cell is the number of its places when all of them are right, as `td.check_sites` measures it
  on those outside the blocks and in the first and the last block: each runs, a layer there changes
  training and never evaluation, the tensor is as wide as is said, taking the layer out gives every bit
  back; with everything dropped at `attention_output` the weights mean nothing and no token of a block
  influences another, but for what is then named, at `mlp_output` the hidden units
  mean nothing, at `embedding` and `classifier` the tokens. `-`: the model has no such place.
* **still at 0**: with every kind at rate 0 two training forwards are equal to the last bit; *but for*
  names what no kind reaches.
* **kernels**: random kernels of a training forward, counted below autograd, and those that the run saw.

{summary}

"""
COLUMNS = ("model", "class", *(f"`{kind}`" for kind in KINDS), "still at 0", "kernels")


class CountRandom(TorchDispatchMode):
    """Counts the kernels that draw, by nothing but torch's own mark of them."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = torch.get_rng_state()
        result = func(*args, **(kwargs or {}))
        if isinstance(func, torch._ops.OpOverload):
            self.count += not torch.equal(before, torch.get_rng_state())
        return result


class Slow(Exception):
    """A model took too long."""


def too_slow(*_: object) -> None:
    raise Slow(f"It took more than {SECONDS} seconds of CPU time.")


def with_own_rates(model: nn.Module) -> nn.Module:
    """Set every rate of a model's own, but for those that leave out whole blocks."""
    for _, held, name in rates_of(model):
        if "layer" not in name:
            held[name] = OWN_RATE
    return model


def row(name: str, model: nn.Module, inputs: Any) -> tuple[list[str], bool]:
    """Return the cells of a model, and whether nothing in them is wrong."""
    with_own_rates(model)
    sites = find_sites(model, inputs)
    kernels = counted(model, inputs)
    near = [site for site in sites if site.block in (None, 0, site.n_blocks - 1)]
    problems: dict[str, str] = {}
    notes: dict[str, str] = {}
    for check in checks_of(model, inputs, near, sites):
        if check.problem:
            problems.setdefault(check.site.kind, check.problem)
        elif check.note:
            notes.setdefault(check.site.kind, check.note)
    counts = Counter(site.kind for site in sites)
    cells = [cell(problems.get(kind), counts[kind], notes.get(kind)) for kind in KINDS]
    still = stillness(model, inputs, sites)
    right = not problems and "differ" not in still and kernels[0] == kernels[1]
    return [name, type(model).__name__, *cells, still, f"{kernels[0]} / {kernels[1]}"], right


def cell(problem: str | None, count: int, note: str | None) -> str:
    """Return what is written of a kind: what is wrong, or how many places it has and what is to be known."""
    return problem or (f"{count}. {note}" if note else str(count) if count else "-")


def counted(model: nn.Module, inputs: Any) -> tuple[int, int]:
    """Return the random kernels of a training forward, counted below autograd and as the run saw them."""
    with unchanged(model):
        model.train()
        torch.manual_seed(0)
        with CountRandom() as mode, torch.no_grad():
            call(model, inputs)
    with unchanged(model):
        model.train()
        torch.manual_seed(0)
        run = Recorder(model).record(inputs)
    return mode.count, sum(len(node.drawn) for node in run.nodes)


def stillness(model: nn.Module, inputs: Any, sites: list[Site]) -> str:
    """Return whether with every kind at rate 0 two training forwards are equal."""
    kinds = sorted({site.kind for site in sites if site.kind != "other"})
    others = sorted({site.path or "the model itself" for site in sites if site.kind == "other"})
    recipe = td.Recipe([td.Rule(kind, td.Dropout, p=0.0) for kind in kinds])
    handle = td.regularize_(model, recipe, sites=sites)
    runs = []
    for seed in range(2):
        with unchanged(model), torch.no_grad():
            model.train()
            torch.manual_seed(seed)
            runs.append([v.clone() for v in tensors_in(call(model, inputs)) if v.is_floating_point()])
    handle.remove()
    if all(torch.equal(one, other) for one, other in zip(*runs, strict=True)):
        return "yes"
    return f"but for {', '.join(others)}" if others else "two forwards differ"


def measured(name: str, build: Build) -> dict[str, Any]:
    """Return what there is to say of a model: its cells, why it is refused, or why it is not measured."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        model, inputs = build()
    except Exception as error:  # a stranger's model may fail in any way
        return {"name": name, "unbuilt": str(error).partition("\n")[0] or type(error).__name__}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        cells, right = row(name, model, inputs)
    except Exception as error:
        return {"name": name, "refused": str(error) or type(error).__name__}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return {"name": name, "cells": cells, "right": right}


def all_measured(names: Sequence[str], kept: Path | None) -> list[dict[str, Any]]:
    """Return what is said of each model; what a file holds is not measured again, what is new is added."""
    known = known_models()
    found: dict[str, dict[str, Any]] = {}
    if kept is not None and kept.exists():
        lines = kept.read_text(encoding="utf-8").splitlines()
        found = {line["name"]: line for line in map(json.loads, lines)}
    for name in names or known:
        if name in found:
            continue
        found[name] = measured(name, known[name])
        sys.stderr.write(f"{name}\n")
        if kept is not None:
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found[name]) + "\n")
    return [found[name] for name in names or known]


def page(measurements: Sequence[Mapping[str, Any]]) -> str:
    """Return the page, as Markdown."""
    rows = [line for line in measurements if "cells" in line]
    refused = [(line["name"], line["refused"]) for line in measurements if "refused" in line]
    unbuilt = [(line["name"], line["unbuilt"]) for line in measurements if "unbuilt" in line]
    wrong = [line["name"] for line in rows if not line["right"]]
    summary = f"{len(rows)} rows, {len(wrong)} of them wrong; {len(refused)} refused."
    if wrong:
        summary += f" Wrong, with the sentence in the cell: {', '.join(wrong)}."
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(line['cells'])} |" for line in rows]
    text = INTRODUCTION.format(
        versions=", ".join(
            f"{name} {version(name).partition('+')[0]}"
            for name in ("torch", "transformers", "timm", "x-transformers")
            if find_spec(name.replace("-", "_")) is not None
        ),
        own=OWN_RATE,
        summary=summary,
    ) + "\n".join(lines)
    for title, items in (("Refused", refused), ("Not measured: no small model or inputs", unbuilt)):
        text += f"\n\n## {title}\n\n" + "\n".join(line_of(*item) for item in items) if items else ""
    return text + "\n"


def line_of(name: str, why: str) -> str:
    """Return a line of a list, in which a bracket of a message is no link."""
    return f"* {name}: {why}".replace("[", "\\[")


def main() -> None:
    """Measure what is named on the command line, and print the page."""
    parser = argparse.ArgumentParser(description="Measure the table of models, and print its page.")
    parser.add_argument("names", nargs="*", help="rows of the table; all without")
    parser.add_argument("--keep", type=Path, help="a file of what was measured, where to go on")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    signal.signal(signal.SIGPROF, too_slow)
    with redirect_stdout(sys.stderr):  # what a stranger's code prints is not of the page
        measurements = all_measured(given.names, given.keep)
    sys.stdout.write(page(measurements))


if __name__ == "__main__":
    main()
