"""Rates that are written down and read by nothing: config fields, and modules that are never called."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..layers import DropoutLayer
from ..sites.observation.inputs import call
from ..sites.observation.lineage import tensors_in
from ..sites.observation.restore import unchanged
from ..sites.observation.stack import is_dropout_module
from ._configured import config_fields, is_rate
from ._events import ConfigField, Event, Finding, patterns
from ._findings import is_close
from ._modes import differ
from ._observe import Observer, observe_training
from ._places import is_callable, parents, within

Rebuild = Callable[[Mapping[str, float]], nn.Module]


def read_fields(model: nn.Module, training: Observer) -> tuple[ConfigField, ...]:
    """Match the dropout fields of the config with the rates that ran.

    A field that shares its value with another, or that is 0, cannot be told from these; what nothing ran
    with was read by nothing.
    """
    fields = config_fields(model)
    result = []
    for name, value in fields.items():
        shared = sum(is_close(value, other) for other in fields.values()) > 1
        at = sites_of(training.events, value)
        unseen = skipped_blocks(training) or training.evaluated
        unknown = not value or (shared and bool(at)) or bool(unseen)
        result.append(ConfigField(name=name, value=value, read_at=None if unknown else at))
    return tuple(result)


def probe_fields(model: nn.Module, inputs: Any, rebuild: Rebuild) -> tuple[ConfigField, ...]:
    """Find what reads each field, on a rebuilt model in which each field has a rate of its own."""
    fields = config_fields(model)
    values = {name: probe_rate(name, number) for number, name in enumerate(fields)}
    probe, _ = observe_training(rebuild(values).train(), inputs)
    return tuple(
        ConfigField(name=name, value=value, read_at=sites_of(probe.events, values[name]))
        for name, value in fields.items()
    )


def probe_rate(name: str, number: int) -> float:
    """Return a rate that no other field has; that of a layer drop must not skip what is to be seen."""
    if "layerdrop" in name or "layer_drop" in name:
        return 1e-6 * (number + 1)
    return 0.11 + 1e-3 * (number + 1)


def sites_of(events: list[Event], rate: float | None) -> tuple[str, ...]:
    """Return patterns of the places where a rate ran."""
    found = (
        e
        for e in events
        if is_close(rate, e.resolved) or (e.resolved is None and is_close(rate, e.configured))
    )
    return patterns(event.path for event in found)


def skipped_blocks(training: Observer) -> set[str]:
    """Return the blocks that did not run, as under layer drop; nothing can be said about these."""
    return training.blocks - training.called


def dead_fields(
    model: nn.Module, fields: tuple[ConfigField, ...], ignored_rates: list[float]
) -> Iterator[Finding]:
    """Find fields that are above 0 and that nothing read.

    Args:
        model: named in the message.
        fields: with where each is read.
        ignored_rates: rates that an attention holds and ignores; a field with such a value was read.
    """
    for field in fields:
        if field.value and field.read_at == () and not any(is_close(field.value, r) for r in ignored_rates):
            yield Finding(
                code="dead-field",
                site=f"config.{field.name}",
                message=f"It is {field.value:.4g}, but nothing in {type(model).__name__} ran with that rate. "
                "The field belongs to another head, is read by nothing, or was changed after the model was "
                "built, which has no effect. Set it before building, or change the rate with td.regularize_.",
            )


def uncalled_dropouts(model: nn.Module, training: Observer) -> dict[str, nn.Module]:
    """Return the dropout modules with a rate that did not run although the module around them did."""
    result = {}
    for path, module in model.named_modules():
        around = next((outer for outer in parents(path) if is_callable(model.get_submodule(outer))), "")
        # Where a recipe's layer sits beside it, that one has taken its place.
        replaced = is_regularized(model.get_submodule(around), here=True)
        ran = around in training.called - training.evaluated and not replaced
        if ran and path not in training.called and is_dropout_module(module) and module_rate(module) > 0:
            result[path] = module
    return result


def is_regularized(module: nn.Module, *, here: bool = False) -> bool:
    """Return whether a recipe's layers are in a module, or ``here``, directly below it."""
    parts = module.children() if here else module.modules()
    return any(isinstance(part, DropoutLayer) for part in parts)


def module_rate(module: nn.Module) -> float:
    """Return the rate that a dropout module holds, 0 without one."""
    rate = vars(module).get("p", 0.0)
    return float(rate) if is_rate(rate) else 0.0


def never_called(model: nn.Module, inputs: Any, training: Observer) -> tuple[list[Finding], list[str]]:
    """Find dropout modules that are never called, and say of which only the rate is read.

    That is seen by giving each a rate of its own and running the model again.

    Returns:
        The findings, and notes on modules that are read without being called.
    """
    uncalled = {
        path: module for path, module in uncalled_dropouts(model, training).items() if hasattr(module, "p")
    }
    if not uncalled:
        return [], []
    # No rate that anybody writes down.
    probes = {path: 0.2003 + 0.5 * number / (len(uncalled) + 1) for number, path in enumerate(uncalled)}
    with rates_set({module: probes[path] for path, module in uncalled.items()}):
        second, _ = observe_training(model, inputs)
    readers = {
        path: patterns(e.path for e in second.events if is_close(probes[path], e.resolved))
        or patterns(e.path for e in events_without_rate(second, path) if moves(model, inputs, uncalled[path]))
        for path in uncalled
    }
    findings = [
        Finding(
            code="never-called",
            site=site,
            message="The forward around it ran without calling it, and nothing reads its p: its rate does "
            "nothing. Call it, remove it, or set its p to 0.",
        )
        for site in patterns(path for path, sites in readers.items() if not sites)
    ]
    read = [path for path, sites in readers.items() if sites]
    at = [site or "the model" for site in patterns(s for sites in readers.values() for s in sites)]
    notes = [
        f"{site} is never called, but its p is read by {', '.join(at)}; setting p works."
        for site in patterns(read)
    ]
    return findings, notes


@contextmanager
def rates_set(rates: Mapping[nn.Module, float]) -> Iterator[None]:
    """Give modules another ``p`` for a while."""
    before = {module: vars(module)["p"] for module in rates}
    try:
        for module, p in rates.items():
            vars(module)["p"] = p
        yield
    finally:
        for module, p in before.items():
            vars(module)["p"] = p


def events_without_rate(observer: Observer, path: str) -> list[Event]:
    """Return the random operations beside a module whose kernels were given no rate to compare."""
    owner = path.rpartition(".")[0]
    return [event for event in observer.events if event.resolved is None and within(event.path, owner)]


def moves(model: nn.Module, inputs: Any, module: nn.Module) -> bool:
    """Return whether the outputs under one seed change with a module's ``p``."""
    outputs = []
    for p in (0.2, 0.7):
        with rates_set({module: p}), unchanged(model), torch.no_grad():
            torch.manual_seed(0)
            outputs.append([value.clone() for value in tensors_in(call(model, inputs))])
    return differ(*outputs)
