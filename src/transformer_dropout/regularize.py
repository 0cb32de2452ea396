"""`regularize_`: put a recipe's layers into a model, and the handle that steers and removes them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ._placement import Placement, assign, build_layer, child_name, refuse_second_regularization
from .errors import InputError
from .layers import DropoutLayer, RateLayer
from .recipe import Recipe, Rule
from .sites import Site, find_sites


@dataclass(frozen=True)
class Placed:
    """A layer at its site, with the rule that put it there."""

    site: Site
    rule: Rule
    layer: DropoutLayer


@dataclass
class KeepCount:
    """Kept and total elements of one layer's masks, as drawn and as thresholded at one half."""

    kept: float = 0.0
    above_half: float = 0.0
    total: int = 0

    def add(self, keep_probability: Tensor, mask: Tensor) -> None:
        """Count one forward."""
        self.kept += mask.sum(dtype=torch.float64).item()
        self.above_half += int((keep_probability >= 0.5).sum())
        self.total += mask.numel()


class Regularization:
    """The handle that `regularize_` returns: it steers the layers, reads them, and takes them out again.

    Attributes:
        model: the model that was changed.
        recipe: the recipe that was applied.
        placed: every layer with its site and rule.
        progress: the fraction of training done, as last set.
    """

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        self.model, self.recipe = model, recipe
        self.placed: list[Placed] = []
        self.progress = 0.0
        self._placements: list[Placement] = []
        self._keep_counts: dict[str, KeepCount] = {}

    def place(self, site: Site, rule: Rule, layer: DropoutLayer) -> None:
        """Put a layer at its site."""
        placement = Placement(self.model.get_submodule(site.path), child_name(site), layer)
        self._placements.append(
            placement.on_attention() if site.access == "attention" else placement.on_output()
        )
        self.placed.append(Placed(site, rule, layer))

    def place_source(self, sites: list[Site], rule: Rule) -> nn.Module:
        """Put the module that a rule's layers share beside the embedding, and return it."""
        site = next((site for site in sites if site.kind == "embedding"), None)
        if site is None or site.width is None:
            raise InputError(
                f"{rule.layer.__name__} needs a model with an embedding site, and this one has none."
            )
        assert rule.layer.shared_source is not None
        source = rule.layer.shared_source.for_rule(site.width, rule.arguments)
        index = sum(placement.name.startswith("mask_embedding") for placement in self._placements)
        name = f"mask_embedding_{index}" if index else "mask_embedding"
        self._placements.append(Placement(self.model.get_submodule(site.path), name, source).beside_output())
        return source

    def set_progress(self, progress: float) -> None:
        """Move every rate and weight to its value at ``progress``, a fraction in [0, 1].

        Raises:
            InputError: for a progress outside [0, 1].
        """
        if not 0 <= progress <= 1:
            raise InputError(f"progress is {progress}; it is the fraction of training done, between 0 and 1.")
        self.progress = progress
        for placed in self.placed:
            if isinstance(placed.layer, RateLayer):
                placed.layer.set_rate(placed.rule.rate(placed.site, progress))

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
        """Count kept elements in the forwards inside the ``with`` block; yields counts by site path."""
        self._keep_counts = {
            p.site.path: KeepCount() for p in self.placed if not isinstance(p.layer, RateLayer)
        }
        try:
            for placed in self.placed:
                if placed.site.path in self._keep_counts:
                    placed.layer.observer = self._keep_counts[placed.site.path].add
            yield self._keep_counts
        finally:
            for placed in self.placed:
                placed.layer.observer = None

    def metrics(self) -> dict[str, float]:
        """Return what can be logged now: the rate at each site, and what ``counting`` last counted.

        ``keep/PATH`` is the fraction kept as the masks were, ``keep_thresholded/PATH`` the fraction whose
        probability is at least one half; ``keep`` and ``keep_thresholded`` are their means over layers.
        """
        values = {
            f"p/{p.site.path}/{p.site.kind}": p.layer.p for p in self.placed if isinstance(p.layer, RateLayer)
        }
        counted = {path: count for path, count in self._keep_counts.items() if count.total}
        for path, count in counted.items():
            values[f"keep/{path}"] = count.kept / count.total
            values[f"keep_thresholded/{path}"] = count.above_half / count.total
        if counted:
            for name in ("keep", "keep_thresholded"):
                values[name] = sum(values[f"{name}/{path}"] for path in counted) / len(counted)
        return values

    def report(self) -> str:
        """Return one line a site: its path, kind, layer, and rate."""
        return "\n".join(f"{p.site.path}  {p.site.kind}  {p.layer!r}".split("\n")[0] for p in self.placed)

    def remove(self) -> None:
        """Take every layer out again; the model is then as it was before.

        Raises:
            InputError: when it was removed already.
        """
        if self.placed and not self._placements:
            raise InputError(
                "This regularization was removed already; call td.regularize_ to apply it again."
            )
        for placement in self._placements:
            placement.undo()
        self._placements.clear()


def regularize_(model: nn.Module, recipe: Recipe) -> Regularization:
    """Put a recipe's layers into a model, in place; the model's own ``state_dict`` keys stay.

    Args:
        model: the model, before it is compiled or wrapped for several processes.
        recipe: the rules; at each site the first that matches acts, and one that acts nowhere is an error.

    Raises:
        InputError: for a rule that matches nothing or comes too late, a layer that cannot act at its
            site, a model that is already regularized or compiled.
    """
    if hasattr(model, "_orig_mod"):
        raise InputError(
            "The model is already compiled; call td.regularize_ first and torch.compile after it."
        )
    sites = find_sites(model)
    assignments = assign(sites, recipe)
    refuse_second_regularization(model, sites)
    handle = Regularization(model, recipe)
    sources: dict[int, nn.Module] = {}
    for site, rule in assignments:
        if rule.layer.shared_source is not None and id(rule) not in sources:
            sources[id(rule)] = handle.place_source(sites, rule)
        handle.place(site, rule, build_layer(site, rule, sources.get(id(rule))))
    handle.set_progress(0.0)
    return handle
