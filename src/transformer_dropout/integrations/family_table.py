"""The table of model families: what of each is reached, and how exactly.

``python -m transformer_dropout.integrations.family_table > docs/families.md`` makes the page anew.
"""

import copy
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..audit._configured import config_fields
from ..audit.contexts import disabled, mc_dropout
from ..audit.tiny_models import FAMILIES, tiny_inputs, tiny_model
from ..errors import InputError
from ..sites import KINDS, find_sites, missing_kinds
from ..surgery.regularize import set_rates

COLUMNS = (
    "family",
    "sites reached",
    "`set_rates` effective",
    "`disabled` exact",
    "`mc_dropout` varies",
    "`remove` exact",
)
INTRODUCTION = """# Model families

Each row is measured on a tiny random model of the family (transformers {transformers}, torch {torch}), with
its own dropout at {own} in every field of its config. Make the page anew with

    python -m transformer_dropout.integrations.family_table > docs/families.md

* **sites reached**: how many of the kinds have a place in the family:
  {kinds}.
* **`set_rates` effective**: at how many of them a rate of 0.9 changes the output in training, leaves the one
  in evaluation bit-equal, and 0 gives the undropped output back.
* **`disabled` exact**: inside `td.disabled(model)` two forwards in training mode are bit-equal.
* **`mc_dropout` varies**: `td.mc_dropout(model, 2)` shows a variance above zero.
* **`remove` exact**: after `remove()` the keys of the state, the output in training under a seed, and the
  output in evaluation are bit for bit those from before.

Any other model is read off its modules and its code: other families, timm's, torch's own layers, hand-written
ones. `dropout sites` lists what was found and names what was not; `td.audit` shows what then really drops.
Whether a token may see later ones is known where Hugging Face's attention says so, or images come in; else a
model is taken to be causal, so write `causal=False` in the rule for an encoder.
"""
OWN_RATE = 0.37


def family_table(families: Iterable[str] = FAMILIES) -> str:
    """Return the page with the table, as Markdown.

    Args:
        families: the families to measure, by their ``model_type``.
    """
    import transformers

    page = INTRODUCTION.format(
        transformers=transformers.__version__,
        torch=torch.__version__.partition("+")[0],
        own=OWN_RATE,
        kinds=", ".join(f"`{kind}`" for kind in KINDS),
    )
    notes: list[str] = []
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    for family in families:
        cells = row(family, notes)
        lines.append(f"| {' | '.join(cells)} |")
    explained = "\n".join(f"{number}. {note}" for number, note in enumerate(notes, start=1))
    return "\n".join([page, *lines]) + (f"\n\n{explained}\n" if notes else "\n")


def row(family: str, notes: list[str]) -> tuple[str, ...]:
    """Return the cells of a family; what is not as it should be is explained in a new note."""
    model = with_own_dropout(family)
    missing = missing_kinds(model)
    reached = [kind for kind in KINDS if kind not in missing]
    effective = {kind: rate_is_effective(tiny_model(family, **fields(family, 0.0)), kind) for kind in reached}
    return (
        family,
        counted(len(reached), len(KINDS), [*unreached(family, missing), *rates_only(family, model)], notes),
        counted(
            sum(effective.values()),
            len(reached),
            [f"{family}, {kind}: a rate has no effect." for kind, works in effective.items() if not works],
            notes,
        ),
        said(*disabled_is_exact(model), family, notes),
        said(*variance_is_seen(model), family, notes),
        said(*remove_is_exact(model, reached), family, notes),
    )


def unreached(family: str, missing: dict[str, str]) -> list[str]:
    """Return a note on each kind that has no place."""
    return [f"{family}, {kind}: {why}." for kind, why in missing.items()]


def rates_only(family: str, model: nn.Module) -> list[str]:
    """Return a note on each kind at which the model's own code drops, so that no other layer can act."""
    accesses: dict[str, set[str]] = {}
    for site in find_sites(model):
        accesses.setdefault(site.kind, set()).add(site.access)
    return [
        f"{family}, {kind}: its own code drops there, so a rate can be set and no other layer placed."
        for kind, ways in accesses.items()
        if ways == {"rate"}
    ]


def fields(family: str, rate: float) -> dict[str, Any]:
    """Return every dropout field of a family's config at one rate."""
    # Whole blocks left out could hide whether anything else drops.
    names = config_fields(tiny_model(family))
    return {name: 0.0 if "layerdrop" in name else rate for name in names}


def with_own_dropout(family: str) -> nn.Module:
    """Return a tiny model that drops wherever its config can say so."""
    return tiny_model(family, **fields(family, OWN_RATE))


def output(model: nn.Module, seed: int = 0) -> Tensor:
    """Return a model's logits under a seed."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        return model(**tiny_inputs(model)).logits


def rate_is_effective(model: nn.Module, kind: str) -> bool:
    """Say whether a rate at a kind of site acts in training, only there, and can be turned off."""
    expected = output(model.eval())
    handle = set_rates(model, {kind: 0.9})
    still = torch.equal(output(model), expected)
    changed = not torch.equal(output(model.train()), expected)
    handle.update({kind: 0.0})
    return still and changed and torch.allclose(output(model), expected, rtol=1e-3, atol=1e-5)


def disabled_is_exact(model: nn.Module) -> tuple[bool, str]:
    """Say whether two forwards in training mode are bit-equal with dropout disabled, and why not."""
    try:
        with disabled(model.train()):
            return torch.equal(output(model, 1), output(model, 2)), "two forwards differ."
    except InputError as error:
        return False, str(error)


def variance_is_seen(model: nn.Module) -> tuple[bool, str]:
    """Say whether Monte Carlo dropout shows a variance, and why not."""
    with mc_dropout(model, 2) as predict:
        return bool(predict(**tiny_inputs(model)).variance.max() > 0), "two forwards are equal."


def remove_is_exact(model: nn.Module, kinds: list[str]) -> tuple[bool, str]:
    """Say whether a model is as it was when its layers have been removed, and why not."""
    model = copy.deepcopy(model)
    before = list(model.state_dict()), output(model.train()), output(model.eval())
    handle = set_rates(model, dict.fromkeys(kinds, 0.2))
    placed = len(handle.placed) == len(find_sites(model)) and not torch.equal(
        output(model.train()), before[1]
    )
    handle.remove()
    same = list(model.state_dict()) == before[0] and torch.equal(output(model.train()), before[1])
    return placed and same and torch.equal(output(model.eval()), before[2]), "an output differs."


def said(holds: bool, why_not: str, family: str, notes: list[str]) -> str:
    """Return yes, or no with a note."""
    return "yes" if holds else f"no{referred([f'{family}: {why_not}'], notes)}"


def counted(number: int, total: int, reasons: list[str], notes: list[str]) -> str:
    """Return how many of all, with notes on the others."""
    return f"{number} of {total}{referred(reasons, notes)}"


def referred(reasons: list[str], notes: list[str]) -> str:
    """Add notes and return their numbers."""
    notes.extend(reasons)
    numbers = range(len(notes) - len(reasons) + 1, len(notes) + 1)
    return f" ({', '.join(f'note {number}' for number in numbers)})" if reasons else ""


if __name__ == "__main__":
    sys.stdout.write(family_table())
