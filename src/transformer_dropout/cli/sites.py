"""``dropout sites``: where layers can act in a model, and what a recipe would do there."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from ..errors import InputError
from .tables import print_table, table_console
from .target import open_target

if TYPE_CHECKING:
    from torch import nn

    from ..recipe import Recipe
    from ..sites import Site
    from ..surgery.regularize import Placed

NOTHING = "-"
# Ready recipes that need no word about the model.
READY = ("adaptive", "bert", "early", "gpt2", "late", "layer_drop", "lima", "small_data")


def sites(
    target: Annotated[
        str,
        typer.Argument(help="A family (gpt2), a config.json, a saved model's folder, or module:function."),
    ],
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe",
            metavar="RECIPE",
            help="A ready one (" + ", ".join(READY) + "), a YAML file, or a folder that holds one.",
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Measure whether each place is what it is called.")
    ] = False,
) -> None:
    """List the places of a model where a layer can act, and what a recipe would do at each.

    The places are seen in one small forward and backward of the model; with --check each place also proves
    that it is what it is called.

    A family or a config.json is built tiny and random: seconds, no weights. Equal places of several blocks
    share a line, with a star for the block. Nothing is written. A rate that moves is shown
    at the beginning, in the middle and at the end of training. Exit code 2: a rule matches no place, or its
    layer cannot act there.

    Examples:

    - `dropout sites llama`
    - `dropout sites whisper --check`
    - `dropout sites llama --recipe lima`
    - `dropout sites models/mine --recipe recipe.yaml`
    - `dropout sites my_package.model:build --recipe recipe.yaml`
    """
    from ..sites import find_sites, missing_kinds, own_rate

    opened = open_target(target)
    model = plain(opened.model)
    chosen = None if recipe is None else read_recipe(recipe)
    found = find_sites(model, opened.inputs)
    rates = {site.name: number(own_rate(model, site)) for site in found}
    missing = missing_kinds(model, opened.inputs)
    plans = None if chosen is None else layers_by_site(model, chosen, found)
    console = table_console()
    columns = ("path", "kind", "blocks", "reached by", "width", "rate now")
    columns = columns if plans is None else (*columns, "with the recipe")
    rows = rows_of(found, rates, plans)
    title = f"{target}: sites of {type(model).__name__}"
    print_table(console, title, columns, join_blocks(rows), fixed=2)
    for kind, reason in missing.items():
        console.print(f"not reached: {kind}, {escape(reason)}.", soft_wrap=True, highlight=False)
    if check and not print_checks(console, model, opened.inputs, found):
        raise typer.Exit(1)


def rows_of(found: "list[Site]", rates: dict[str, str], plans: dict[str, str] | None) -> list[tuple]:
    """Return one row per site."""
    return [
        (
            pattern(site),
            site.kind,
            site.block,
            site.access,
            NOTHING if site.width is None else str(site.width),
            rates[site.name],
            *(() if plans is None else (plans.get(site.name, "as it is"),)),
        )
        for site in found
    ]


def print_checks(console: Any, model: "nn.Module", inputs: Any, found: "list[Site]") -> bool:
    """Print what `check_sites` finds; return whether every place is what it is called."""
    from ..surgery.check import check_sites

    checks = check_sites(model, inputs, sites=found)
    for problem in dict.fromkeys(check.problem for check in checks if check.problem):
        console.print(f"wrong: {escape(problem)}", soft_wrap=True, highlight=False)
    for note in dict.fromkeys(check.note for check in checks if check.note):
        console.print(f"note: {escape(note)}", soft_wrap=True, highlight=False)
    right = sum(check.right for check in checks)
    console.print(f"checked: {right} of {len(checks)} places are what they are called.", highlight=False)
    return right == len(checks)


def plain(model: "nn.Module") -> "nn.Module":
    """Return a model without the recipe that a saved decoder of ours brings along."""
    from ..tasks.language.decoder import Decoder

    return Decoder(model.vocabulary_size, model.config) if isinstance(model, Decoder) else model


def read_recipe(path: Path) -> "Recipe":
    """Read a recipe from a file, or from the folder of a saved model; a name alone may be a ready one.

    Raises:
        InputError: when there is none.
    """
    from .. import recipes
    from ..recipe import Recipe
    from ..surgery.saved_recipe import load_recipe

    if path.is_dir():
        return load_recipe(path)
    if path.is_file():
        return Recipe.from_yaml(path)
    if str(path) in READY:
        return getattr(recipes, str(path))()
    raise InputError(
        f"There is no recipe {path}; give a YAML file such as: - {{select: mlp_output, ...}}, or one of "
        f"{', '.join(READY)}."
    )


def layers_by_site(model: "nn.Module", recipe: "Recipe", found: "list[Site]") -> dict[str, str]:
    """Return what a recipe does at each site of a model, by the site's name."""
    from ..surgery.regularize import regularize_

    # On the model in memory, which nobody else sees: all that cannot be done is refused as it would be.
    handle = regularize_(model, recipe, sites=found)
    plans = {placed.site.name: plan(placed) for placed in handle.placed}
    handle.remove()
    return plans


def plan(placed: "Placed") -> str:
    """Return the layer of a site with its rate from the beginning to the end of training."""
    rule = placed.rule
    parts = [rule.layer.__name__]
    if rule.p is not None:
        parts.append(span(rule.rate(placed.site, at) for at in (0.0, 0.5, 1.0)))
    parts += [f"{name}={value}" for name, value in rule.arguments.items()]
    if rule.weight is not None:
        parts.append(f"penalty x {span(rule.weight(at) for at in (0.0, 0.5, 1.0))}")
    return " ".join(parts)


def span(values: Iterable[float]) -> str:
    """Return a number, or how it moves at the beginning, the middle and the end of training."""
    texts = [number(value) for value in values]
    return texts[0] if len(set(texts)) == 1 else " > ".join(texts)


def number(value: float | None) -> str:
    """Return a rate as text."""
    return NOTHING if value is None else f"{value:.4g}"


def pattern(site: "Site") -> str:
    """Return a path with a star for the index of the block."""
    parts = site.path.split(".")
    if str(site.block) in parts:
        parts[parts.index(str(site.block))] = "*"
    return ".".join(parts)


def join_blocks(rows: list[tuple]) -> list[tuple[str, ...]]:
    """Join rows that differ in their block only, in the order of the first of them."""
    blocks: dict[tuple, list[int | None]] = {}
    for path, kind, block, *others in rows:
        blocks.setdefault((path, kind, *others), []).append(block)
    return [
        (path if len(of) > 1 else path.replace("*", str(of[0])), kind, ranges(of), *others)
        for (path, kind, *others), of in blocks.items()
    ]


def ranges(blocks: list[int | None]) -> str:
    """Return block indices as text: 0-3, 5."""
    texts: list[str] = []
    start: int | None = None
    previous = -1
    for block in [*(block for block in blocks if block is not None), None]:
        if start is not None and (block is None or block != previous + 1):
            texts.append(f"{start}" if start == previous else f"{start}-{previous}")
            start = None
        if start is None:
            start = block
        previous = -1 if block is None else block
    return ", ".join(texts) or NOTHING
