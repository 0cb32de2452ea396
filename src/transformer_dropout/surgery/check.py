"""`check_sites`: every place proves that it is what it is called."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..notebook import html_table
from ..sites import KINDS, Site, find_sites
from ..sites._own_inputs import usable_inputs
from ..sites.observation.restore import refuse_what_cannot_be_watched, unchanged
from ._influence import mixers
from ._outputs import distance, other_tokens, same
from ._probe import NEARLY_ALL, layers_at, nothing_else_drops, results, unmoved, weights_begun
from ._together import is_as_wide, proven_together
from ._unreached import unreached

# What rounding leaves, and what of an effect: a batch norm makes more of it.
TOLERANCE, SHARE = 1e-5, 1e-3


@dataclass(frozen=True, kw_only=True)
class SiteCheck:
    """What was measured at one place.

    Attributes:
        site: the place.
        problem: the sentence that says what is not as it should be; None where all is.
        note: a sentence on what the place is right not to reach, as other ways from token to token.
    """

    site: Site
    problem: str | None = None
    note: str | None = None

    @property
    def right(self) -> bool:
        """Whether the place is what it is called."""
        return self.problem is None


class SiteChecks(list[SiteCheck]):
    """A list of checks; a notebook shows it as a table."""

    def _repr_html_(self) -> str:
        rows = [(check.site.path, check.site.kind, check.problem or "right", check.note) for check in self]
        return html_table(f"{len(rows)} places", ("path", "kind", "found", "note"), rows)


def check_sites(model: nn.Module, inputs: Any = None, *, sites: Iterable[Site] | None = None) -> SiteChecks:
    """Measure whether each place of a model is what it is called; the model is then as it was.

    At each place a layer that drops nothing is compared with none, and with one that drops all: the one must
    change nothing, the other the output in training and not in evaluation, the tensor must be as wide as is
    said, and taking the layer out must give every bit back. What may be rounding is measured again in double
    precision. At all places of a kind together: without the attentions' outputs no token may influence
    another in any block, but for other ways that are then named, and the attention weights must mean nothing;
    nor may the hidden units without the MLPs' outputs; without the embedding, or what the output layer is
    given, what the model returns may not depend on the tokens.

    Args:
        model: any module that is not compiled.
        inputs: what it is called with; None for small ones made from what it says of itself.
        sites: the places to check; None for all that `find_sites` finds.

    Returns:
        one `SiteCheck` per place, in the order of the places; those that no layer reaches are left out.

    Raises:
        InputError: for a compiled model, or one that cannot be called with these inputs.
    """
    refuse_what_cannot_be_watched(model, "td.check_sites")
    found = list(find_sites(model, inputs) if sites is None else sites)
    given = usable_inputs(model) if inputs is None else inputs
    return SiteChecks(checks_of(model, given, found, found))


def checks_of(model: nn.Module, inputs: Any, chosen: list[Site], known: list[Site]) -> list[SiteCheck]:
    """Return a check for each of some places of a model.

    Args:
        model: the model.
        inputs: what it is called with.
        chosen: the places to check.
        known: all its places: what a kind means is measured with a layer at every one of its places.
    """
    chosen = [site for site in chosen if site.access != "none" and site.kind != "other"]
    kinds = {site.kind for site in chosen}
    of = {kind: [s for s in known if s.kind == kind and s.access != "none"] for kind in KINDS}
    with unchanged(model), nothing_else_drops(model, known), weights_begun(model):
        before = results(model, inputs, training=True), results(model, inputs, training=False)
        proven = proven_together(model, inputs, chosen, before, results, same)
        measured = [
            SiteCheck(
                site=site,
                problem=None if site.name in proven else problem_at(model, inputs, site, before),
            )
            for site in chosen
        ]
        together = dict(problems_of_kinds(model, inputs, kinds, of))
        notes = notes_of(model, inputs, of) if kinds & {"attention_output", "block"} else {}
    return [
        replace(
            check,
            problem=check.problem or together.get(check.site.kind),
            note=None if check.site.kind in together else notes.get(check.site.name),
        )
        for check in measured
    ]


def attends_in(block: str, site: Site) -> bool:
    """Return whether a place is an attention's in a block."""
    return site.kind == "attention_output" and site.path.startswith(f"{block}.")


def problem_at(
    model: nn.Module, inputs: Any, site: Site, before: tuple[list[Tensor], list[Tensor]]
) -> str | None:
    """Return what is not as it should be at one place, as a sentence; None where all is.

    Args:
        model: the model.
        inputs: what it is called with.
        site: the place.
        before: what it returns without a layer, in training and in evaluation.
    """
    place = f"{site.path} ({site.kind})"
    keys, train, quiet = (
        list(model.state_dict()),
        partial(results, training=True),
        partial(results, training=False),
    )
    with layers_at(model, [site], 0.0) as probes:
        nothing = train(model, inputs)
        seen = next((shape for probe in probes for shape in probe.seen), None)
        ran = not probes or seen is not None
    with layers_at(model, [site], 1.0):
        everything, still = train(model, inputs), quiet(model, inputs)
    if not ran:
        return f"{place} did not run with these inputs."
    if not unmoved(model, inputs, site, 0.0, before[0], nothing):
        return f"A layer that drops nothing at {place} changes the output in training."
    if same(everything, nothing):
        return f"Dropping everything at {place} changes nothing in training."
    if not unmoved(model, inputs, site, 1.0, before[1], still):
        return f"A layer at {place} changes the output in evaluation."
    if seen is not None and not is_as_wide(site, seen):
        return f"{place} is said to be {site.width} wide, but the tensor there is {seen[-1]} wide."
    after = train(model, inputs), quiet(model, inputs)
    if list(model.state_dict()) != keys or not (same(after[0], before[0]) and same(after[1], before[1])):
        return f"With the layer at {place} taken out again, the model is not what it was."
    return None


def problems_of_kinds(
    model: nn.Module, inputs: Any, kinds: Collection[str], of: Mapping[str, list[Site]]
) -> Iterator[tuple[str, str]]:
    """Yield those of some kinds whose places together do not do what their name says, with the sentence."""
    for outer, inner in (("attention_output", "attention_weights"), ("mlp_output", "mlp_hidden")):
        asked = outer in kinds and of[inner]
        covered = {home(site, of["block"]) for site in of[outer]} >= {
            home(site, of["block"]) for site in of[inner]
        }
        if asked and covered and not shadows(model, inputs, of[outer], of[inner]):
            yield outer, f"With everything dropped at {outer}, {inner} still changes the output."
    others = other_tokens(inputs)
    for kind in ("embedding", "classifier"):
        if others is not None and kind in kinds and not forgets(model, inputs, others, of[kind]):
            yield kind, f"With everything dropped at {kind}, the output still depends on the tokens."


def home(site: Site, blocks: Sequence[Site]) -> str:
    """Return which block a place lies in: its path, or its number where blocks are no modules."""
    return next((b.path for b in blocks if site.path.startswith(f"{b.path}.")), str(site.block))


def notes_of(model: nn.Module, inputs: Any, of: Mapping[str, list[Site]]) -> dict[str, str]:
    """Return, by the name of a place, what the places of its block do not reach.

    With everything dropped at the ends of their branches, tokens of a block influence each other no more, and
    no matrix of its changes what the model returns. Where one does, it is told of at the block, or where
    attention adds its output.
    """
    blocks = {block.path: block for block in of["block"]}
    outputs = of["attention_output"]
    ends = outputs + of["mlp_output"]
    if not blocks or any(site.access == "rate" for site in ends):
        return {}
    attentions = [attention_around(model, site) for site in of["attention_weights"]]
    found = {}
    with layers_at(model, outputs, 1.0):
        tokens = {path: int(block.batch_first) for path, block in blocks.items()}
        for path, parts in mixers(model, inputs, tokens).items():
            # Attention does; what it gives is dropped only after.
            others = [part for part in parts if not any(f"{part}.".startswith(a) for a in attentions)]
            attending = [site for site in outputs if attends_in(path, site)]
            for site in attending or [blocks[path]]:
                found[site.name] = f"Tokens of {path} also influence each other in {others[0]}."
    with layers_at(model, ends, 1.0):
        for path, part in unreached(model, inputs, blocks).items():
            found[blocks[path].name] = f"What {part} does no place in the block reaches."
    return found


def attention_around(model: nn.Module, site: Site) -> str:
    """Return how the paths of all that is inside an attention begin, whose weights a place drops."""
    parts = any(model.get_submodule(site.path).children())
    return f"{site.path if parts else site.path.rpartition('.')[0]}."


def shadows(model: nn.Module, inputs: Any, outer: list[Site], inner: list[Site]) -> bool:
    """Return whether with everything dropped at some places, others mean nothing."""
    # Two rates at which the model's own code draws as many numbers: other draws then stay the same.
    with layers_at(model, outer, 1.0):
        with layers_at(model, inner, NEARLY_ALL / 2):
            some = results(model, inputs, training=True)
        with layers_at(model, inner, 1.0):
            return same(results(model, inputs, training=True), some, TOLERANCE)


def forgets(model: nn.Module, inputs: Any, others: Any, sites: list[Site]) -> bool:
    """Return whether with everything dropped at some places, what they change depends on no inputs.

    A classifier's place has to do it alone, or has to be one without which the others do not, as where the
    logits of two heads are added. Of what it changes one output is enough: behind an encoder a decoder goes
    on.
    """
    before = results(model, inputs, training=True)

    def forgotten(places: list[Site]) -> list[bool]:
        with layers_at(model, places, 1.0):
            ones, twos = results(model, inputs, training=True), results(model, others, training=True)
        return [
            distance(one, two) <= SHARE * distance(one, was)
            for one, two, was in zip(ones, twos, before, strict=False)
            if not same([one], [was])
        ]

    together = forgotten(sites)
    if sites[0].kind != "classifier":
        return all(together)
    if together and not any(together):
        return False
    rest = ([other for other in sites if other is not site] for site in sites)
    return all(
        not (alone := forgotten([site])) or any(alone) or not any(forgotten(without))
        for site, without in zip(sites, rest, strict=True)
    )
