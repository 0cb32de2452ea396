"""`regularize_`: put a recipe's layers into a model, and the handle that steers and removes them."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..layers import Dropout, DropoutLayer, LayerDrop, RateLayer
from ..notebook import html_table
from ..recipe import Recipe, Rule, check_rate, selects
from ..schedule_data import schedule_from_data, schedule_to_data
from ..schedules import Schedule, as_schedule
from ..sites import Site, find_sites
from ._apply import Surgery
from ._beside import beside, prove
from ._first_forward import FirstForward
from ._keep_count import KeepCount
from ._mlp import plain_mlp
from ._placement import assign, build_layer, refuse_second_regularization
from ._refusals import HANDLE, refuse_second, refuse_shared_rates, refuse_wrapped


@dataclass(frozen=True)
class Placed:
    """A layer at its site, with the rule that put it there."""

    site: Site
    rule: Rule
    layer: DropoutLayer

    def line_of_layer(self) -> str:
        """Return the layer's class and settings, without the modules inside it."""
        return f"{type(self.layer).__name__}({self.layer.extra_repr()})"


class Regularization:
    """The handle that `regularize_` returns: it steers the layers, reads them, and takes them out again.

    Attributes:
        model: the model that was changed.
        recipe: the recipe that was applied.
        placed: every layer with its site and rule.
        progress: the fraction of training done, as last set.
        beside: what the model itself still drops beside the recipe: one line per place, with its rate.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        self.model, self.recipe = model, recipe
        self.placed: list[Placed] = []
        self.progress = 0.0
        self.made_by: Literal["regularize_", "set_rates"] = "regularize_"
        self.beside: tuple[str, ...] = ()
        self._removed = False
        self._surgery = Surgery(model)
        self._first_forward: FirstForward | None = None
        self._changed_rates: dict[str, Schedule] = {}
        self._keep_counts: dict[str, KeepCount] = {}

    def place(self, site: Site, rule: Rule, layer: DropoutLayer) -> None:
        """Put a layer at its site."""
        self._surgery.place(site, layer)
        if layer.looks_at_tokens:
            self._surgery.inform(site, layer)
        self.placed.append(Placed(site, rule, layer))

    def place_source(self, sites: list[Site], rule: Rule, owner: str | None) -> nn.Module:
        """Put the module that a rule's layers in one stack share beside the stack's embedding; return it."""
        site = next((site for site in sites if site.kind == "embedding" and site.owner == owner), None)
        if site is None or site.width is None:
            raise InputError(
                f"{rule.layer.__name__} needs a model with an embedding site, and this one has none."
            )
        assert rule.layer.shared_source is not None
        if "heads" not in rule.arguments:
            raise InputError(f"{rule.layer.__name__} in the rule for {rule.select!r} needs heads.")
        source = rule.layer.shared_source.for_rule(site.width, site.causal, rule.arguments)
        children = self.model.get_submodule(site.path).named_children()
        taken = sum(name.startswith("mask_embedding") for name, _ in children)
        name = f"mask_embedding_{taken}" if taken else "mask_embedding"
        self._surgery.show_output(site.path, name, source)
        if site.owner is not None:
            self._surgery.inform(site, source)
        return source

    def keep_silenced_rates(self, sites: list[Site]) -> None:
        """Give a layer of the model's own rate to places that share a silenced rate but have no rule."""
        ruled = {placed.site.name for placed in self.placed}
        for site in sites:
            before = 0.0 if site.rate is None else self._surgery.rate_before(site.rate)
            if before > 0 and site.name not in ruled and site.access in ("output", "input", "block"):
                own = LayerDrop if site.access == "block" else Dropout
                self._surgery.place(site, own(before))

    def watch_first_forward(self) -> None:
        """Have the first training forward say at which places no layer acted."""
        places = [(placed.site, self._surgery.runs_at(placed.site, placed.layer)) for placed in self.placed]
        self._first_forward = FirstForward(self.model, places)

    def set_progress(self, progress: float) -> None:
        """Move every rate and weight to its value at ``progress``, a fraction in [0, 1].

        Raises:
            InputError: for a progress outside [0, 1], or after ``remove()``.
        """
        self._refuse_removed()
        if not 0 <= progress <= 1:
            raise InputError(f"progress is {progress}; it is the fraction of training done, between 0 and 1.")
        self.progress = progress
        for placed in self.placed:
            placed.layer.set_progress(progress)
            if isinstance(placed.layer, RateLayer):
                changed = self._changed_rates.get(placed.site.name)
                rate = placed.rule.rate(placed.site, progress) if changed is None else changed(progress)
                placed.layer.set_rate(rate)
                if placed.site.access == "rate":
                    self._surgery.write_rate(placed.site, rate)
        if self._first_forward is not None and self._first_forward.has_begun:
            self._first_forward.tell()

    def update(self, rates: Mapping[str, float | Schedule]) -> None:
        """Give other rates to the layers at some sites from now on.

        Args:
            rates: by selector, as in a rule, the new probability of dropping, a number or a schedule.

        Raises:
            InputError: for a selector that matches no placed layer with a rate, or after ``remove()``.
        """
        self._refuse_removed()
        for selector, rate in rates.items():
            schedule = as_schedule(rate)
            for bound in schedule.bounds():
                check_rate(bound, f"the update for {selector!r}")
            names = [
                placed.site.name
                for placed in self.placed
                if isinstance(placed.layer, RateLayer) and selects(selector, placed.site)
            ]
            if not names:
                listing = ", ".join(p.site.name for p in self.placed if isinstance(p.layer, RateLayer))
                raise InputError(f"No placed layer with a rate matches {selector!r}; there are: {listing}.")
            self._changed_rates.update(dict.fromkeys(names, schedule))
        self.set_progress(self.progress)

    def renew(self, recipe: Recipe) -> None:
        """Give the places other rates: a recipe of as many rules with the same selectors.

        Raises:
            InputError: for a rate that is no probability at a place; the old rates then stay.
        """
        rules = {id(old): new for old, new in zip(self.recipe.rules, recipe.rules, strict=True)}
        placed = [replace(p, rule=rules[id(p.rule)]) for p in self.placed]
        for each in placed:
            each.rule.check_rates(each.site)
        self.recipe, self.placed = recipe, placed
        self._changed_rates.clear()
        self.set_progress(self.progress)

    def put_back(self) -> None:
        """Put layers with rates into the model again, after ``remove()``, with their progress and rates."""
        progress, changed = self.progress, self._changed_rates
        vars(self).update(vars(regularize_(self.model, self.recipe)) | {"made_by": self.made_by})
        vars(self.model)[HANDLE] = self
        self._changed_rates = changed
        self.set_progress(progress)

    def penalty(self) -> Tensor:
        """Return the sum over rules of ``weight(progress) * mean over layers of the penalty``.

        Call it once after each training forward; without weighted rules it is 0.

        Raises:
            InputError: when no training forward has run since the last call.
        """
        total = torch.zeros((), device=next(self.model.parameters()).device)
        for rule in self.recipe.rules:
            if rule.weight is not None:
                terms = [p.layer.take_penalty() for p in self.placed if p.rule is rule]
                total = total + rule.weight(self.progress) * torch.stack(terms).mean()
        return total

    @contextmanager
    def counting(self) -> Iterator[dict[str, KeepCount]]:
        """Count kept elements in the forwards inside the ``with`` block; yields counts by site.

        Layers that compute masks are counted; for the others ``probability()`` says all. Measuring changes
        nothing: at the end every buffer of the model, running means included, is as it was before.
        """
        counted = self.computing_masks()
        self._keep_counts = {placed.site.name: KeepCount() for placed in counted}
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        try:
            for placed in counted:
                placed.layer.observer = self._keep_counts[placed.site.name].add
            yield self._keep_counts
        finally:
            for placed in counted:
                placed.layer.observer = None
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)

    def computing_masks(self) -> list[Placed]:
        """Return the layers without a rate: what they keep shows in a forward only."""
        return [placed for placed in self.placed if placed.layer.probability() is None]

    def metrics(self) -> dict[str, float]:
        """Return what can be logged now: the rate at each site, set or learned, and what was counted.

        ``keep/SITE`` is the fraction kept as the masks were, ``keep_thresholded/SITE`` the fraction whose
        probability is at least one half; ``keep`` and ``keep_thresholded`` are their means over layers.
        """
        rates = {f"p/{placed.site.name}": placed.layer.probability() for placed in self.placed}
        values = {name: rate for name, rate in rates.items() if rate is not None}
        counted = {name: count.fractions() for name, count in self._keep_counts.items() if count.total}
        for name, fractions in counted.items():
            values |= {f"{metric}/{name}": value for metric, value in fractions.items()}
        for metric in ("keep", "keep_thresholded"):
            if counted:
                values[metric] = sum(fractions[metric] for fractions in counted.values()) / len(counted)
        return values

    def report(self) -> str:
        """Return one line per site: path, kind, layer and rate; then what the model still drops itself."""
        placed = [f"{p.site.path}  {p.site.kind}  {p.line_of_layer()}" for p in self.placed]
        return "\n".join([*placed, *(f"beside the recipe: {line}" for line in self.beside)])

    def _repr_html_(self) -> str:
        columns = ("path", "kind", "layer", "p now", "penalty weight now")
        rows = []
        for placed in self.placed:
            rate, weight = placed.layer.probability(), placed.rule.weight
            now = None if weight is None else f"{weight(self.progress):.4g}"
            layer, p = placed.line_of_layer(), None if rate is None else f"{rate:.4g}"
            rows.append((placed.site.path, placed.site.kind, layer, p, now))
        return html_table(f"{len(rows)} layers at progress {self.progress:.4g}", columns, rows)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds beside the model's own state: recipe, progress, changed rates."""
        changed = {name: schedule_to_data(schedule) for name, schedule in self._changed_rates.items()}
        return {"recipe": self.recipe.to_data(), "progress": self.progress, "changed_rates": changed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state_dict`` was taken.

        Raises:
            InputError: when it was taken from another recipe, or from something else.
        """
        missing = [key for key in ("recipe", "progress", "changed_rates") if key not in state]
        if missing:
            raise InputError(f"The state has no {missing[0]!r}; hand over what state_dict() returned.")
        if state["recipe"] != self.recipe.to_data():
            raise InputError(
                "The state belongs to another recipe; apply td.Recipe.from_data(state['recipe'])."
            )
        rates = state["changed_rates"].items()
        self._changed_rates = {name: schedule_from_data(data, name) for name, data in rates}
        self.set_progress(state["progress"])

    def remove(self) -> None:
        """Take every layer out again; the model is then as it was before.

        Raises:
            InputError: when it was removed already.
        """
        self._refuse_removed()
        self._removed = True
        vars(self.model).pop(HANDLE, None)
        if self._first_forward is not None:
            self._first_forward.end()
        self._surgery.undo()

    def _refuse_removed(self) -> None:
        if self._removed:
            raise InputError(
                "This regularization was removed already; call td.regularize_ to apply it again."
            )


def regularize_(
    model: nn.Module, recipe: Recipe, *, sites: Iterable[Site] | None = None, inputs: Any = None
) -> Regularization:
    """Put a recipe's layers into a model, in place; the model's own ``state_dict`` keys stay.

    The first training forward warns of the places that did not run in it, and fails where none did.

    Args:
        model: the model, before it is compiled or wrapped for several processes; one on meta, quantised or
            with shared modules too.
        recipe: the rules; at each site the first that matches acts, and one that acts nowhere is an error.
        sites: the model's sites; None for those that `find_sites` finds.
        inputs: what the model is called with; with them the sites are found in a run of the model on these,
            and those that the recipe uses are checked, as `check_sites` does, before anything is changed.

    Raises:
        InputError: for a rule that matches nothing or comes too late, a layer that cannot act at its
            site, a site that is not what it is called, attention weights whose rate other places share, a
            model that is already regularized or compiled.
    """
    if not isinstance(model, nn.Module) or not isinstance(recipe, Recipe):
        raise InputError(
            "Write td.regularize_(model, td.Recipe([td.Rule(...), ...])) with a torch module, not "
            f"{type(model).__name__} and {type(recipe).__name__}."
        )
    refuse_wrapped(model)
    refuse_second(model)
    named = sites is not None
    sites = find_sites(model, inputs) if sites is None else list(sites)
    assignments = assign(sites, recipe)
    refuse_second_regularization(model, sites)
    refuse_shared_rates(model, sites, assignments)
    if inputs is not None:
        prove(model, inputs, [site for site, _ in assignments], sites)
    handle = Regularization(model, recipe)
    # An encoder and a decoder embed tokens of their own.
    sources: dict[tuple[int, str | None], nn.Module] = {}
    try:
        for site, rule in assignments:
            shared = (id(rule), site.owner)
            if rule.layer.shared_source is not None and shared not in sources:
                sources[shared] = handle.place_source(sites, rule, site.owner)
            mlp = plain_mlp(model, site)
            inputs = None if mlp is None else mlp.width
            handle.place(site, rule, build_layer(site, rule, sources.get(shared), inputs))
        handle.keep_silenced_rates(sites)
        handle.set_progress(0.0)
        ruled = {placed.site.name for placed in handle.placed}
        handle.beside = beside(model, sites, ruled, handle._surgery.moved_rates(), named=named)
    except Exception:
        # A recipe that fails halfway leaves the model as it was.
        handle.remove()
        raise
    if handle.placed:
        vars(model)[HANDLE] = handle
        handle.watch_first_forward()
    return handle
