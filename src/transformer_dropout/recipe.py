"""Recipes: which layer acts where, how strongly, and when."""

import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from . import layers
from .errors import InputError, did_you_mean
from .schedule_data import schedule_from_data, schedule_to_data
from .schedules import Schedule, as_schedule
from .sites import KINDS, Site, rates_in_config

# Arguments that `regularize_` gives to a layer from the site and the recipe.
GIVEN_BY_SITE = ("width", "p", "source", "inputs")
RULE_WORDS = ("select", "layer")
RULE_KEYS = (*RULE_WORDS, "p", "depth", "weight", "blocks")


@dataclass(frozen=True, init=False)
class Rule:
    """One line of a recipe: at the selected sites this layer acts, at this rate, with this penalty weight.

    The rate at a site is ``p(progress) * depth(block / (n_blocks - 1))``.

    Args:
        select: a kind of site, or a Unix pattern on the path such as ``"blocks.[0-5].mlp"``.
        layer: a class of ``transformer_dropout.layers``, or one of your own that inherits from its
            ``DropoutLayer`` or ``RateLayer``.
        p: probability of dropping, a number or a schedule over training; only for layers with a rate.
        depth: a factor for ``p``, a schedule over the depth of the stack.
        weight: factor of the layers' mean penalty in the loss, a number or a schedule over training.
        blocks: the block indices the rule is limited to; None for all.
        arguments: what else the layer's constructor takes, for example ``heads=12``.

    Raises:
        InputError: for an argument that the layer does not have, or a rate or weight it cannot use.
    """

    select: str
    layer: type[layers.DropoutLayer]
    p: Schedule | None
    depth: Schedule | None
    weight: Schedule | None
    blocks: tuple[int, ...] | None
    arguments: Mapping[str, Any] = field(hash=False)

    def __init__(
        self,
        select: str,
        layer: type[layers.DropoutLayer],
        *,
        p: float | str | Schedule | None = None,
        depth: float | str | Schedule | None = None,
        weight: float | str | Schedule | None = None,
        blocks: Iterable[int] | None = None,
        **arguments: Any,
    ) -> None:
        values = {
            "select": select,
            "layer": layer,
            "p": None if p is None else as_schedule(p),
            "depth": None if depth is None else as_schedule(depth),
            "weight": None if weight is None else as_schedule(weight),
            "blocks": None if blocks is None else block_indices(blocks, select),
            "arguments": arguments,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self._check()

    def _check(self) -> None:
        if not (isinstance(self.layer, type) and issubclass(self.layer, layers.DropoutLayer)):
            raise InputError(
                f"The rule for {self.select!r} needs a layer, one of td.layers or a class of your own that "
                f"inherits from td.layers.DropoutLayer, such as td.Dropout, not {self.layer!r}."
            )
        name = self.layer.__name__
        has_rate = issubclass(self.layer, layers.RateLayer)
        if has_rate and self.p is None:
            raise InputError(
                f"The rule for {self.select!r} needs p, the probability of dropping, for {name}."
            )
        if not has_rate and (self.p is not None or self.depth is not None):
            raise InputError(
                f"{name} has no rate that a rule could set; take p and depth out of the rule for "
                f"{self.select!r}."
            )
        parameters = inspect.signature(self.layer).parameters
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        known = [key for key in parameters if key not in GIVEN_BY_SITE]
        types = types_of(self.layer)
        for key, value in self.arguments.items():
            if key not in known and not takes_any:
                raise InputError(f"{name} has no argument {key!r}.{did_you_mean(key, [*known, *RULE_KEYS])}")
            if not fits(value, types.get(key)):
                wanted = getattr(types[key], "__name__", str(types[key]))
                raise InputError(f"{key} of {name} is {value!r}, but it takes a value of type {wanted}.")
        for rate in () if self.p is None else self.p.bounds():
            check_rate(rate, f"the rule for {self.select!r}")
        for key, schedule in (("weight", self.weight), ("depth", self.depth)):
            for value in () if schedule is None else schedule.bounds():
                if not 0 <= value < math.inf:
                    raise InputError(
                        f"{key} is {value} in the rule for {self.select!r}, but it is finite and at least 0."
                    )

    def matches(self, site: Site) -> bool:
        """Return whether this rule selects the site."""
        return (self.blocks is None or site.block in self.blocks) and selects(self.select, site)

    def rate(self, site: Site, progress: float) -> float:
        """Return the probability of dropping at a site: ``p(progress) * depth(site.depth)``."""
        assert self.p is not None
        return self.p(progress) * self.factor(site)

    def factor(self, site: Site) -> float:
        """Return what the rate is multiplied with at a site: ``depth(site.depth)``."""
        return 1.0 if self.depth is None else self.depth(site.depth)

    def check_rates(self, site: Site) -> None:
        """Raise InputError when the rate at a site leaves [0, 1] at any time of the training."""
        for rate in () if self.p is None else self.p.bounds():
            check_rate(rate * self.factor(site), f"the rule for {self.select!r} at {site.path}")

    def to_data(self) -> dict[str, Any]:
        """Return the rule as plain data for YAML or JSON."""
        data: dict[str, Any] = {"select": self.select, "layer": layers.word_for(self.layer)}
        for name in ("p", "depth", "weight"):
            schedule = getattr(self, name)
            if schedule is not None:
                data[name] = schedule_to_data(schedule)
        if self.blocks is not None:
            data["blocks"] = list(self.blocks)
        return data | dict(self.arguments)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> "Rule":
        """Return the rule that plain data describes.

        Raises:
            InputError: for a missing or unknown word, naming the nearest known one, and for a layer of the
                user's own that has not been imported.
        """
        if not isinstance(data, Mapping) or not all(isinstance(data.get(key), str) for key in RULE_WORDS):
            raise InputError(
                "A rule needs select and layer, for example {select: mlp_output, layer: Dropout, p: 0.1}, "
                f"not {data!r}."
            )
        rest = dict(data)
        select, name = (rest.pop(key) for key in RULE_WORDS)
        layer = layers.layer_for(name)
        for key in ("p", "depth", "weight"):
            if rest.get(key) is not None:
                rest[key] = schedule_from_data(rest[key], f"{key} of the rule for {select!r}")
        for key in rest:
            # Python's own name for the rule, which no layer has an argument of.
            if not isinstance(key, str) or key == "self":
                raise InputError(f"The rule for {select!r} has the key {key!r}, which is not a word for it.")
        return cls(select, layer, **rest)


def selects(selector: str, site: Site) -> bool:
    """Return whether a selector, a kind or a pattern on the path, selects a site."""
    if selector in (*KINDS, "input", "lora"):
        return site.kind == selector
    return fnmatchcase(site.path, selector)


def check_rate(rate: float, where: str) -> None:
    """Raise InputError for a rate that is no probability."""
    if not 0 <= rate <= 1:
        raise InputError(f"p is {rate} in {where}, but a probability of dropping lies between 0 and 1.")


def block_indices(blocks: Any, select: str) -> tuple[int, ...]:
    """Return the blocks of a rule; raise InputError for anything but whole numbers."""
    indices: Any = tuple(blocks) if isinstance(blocks, Iterable) and not isinstance(blocks, str) else (None,)
    if not all(type(index) is int for index in indices):
        raise InputError(f"blocks of the rule for {select!r} is {blocks!r}; write a list such as [0, 1].")
    return indices


def types_of(layer: type[layers.DropoutLayer]) -> dict[str, Any]:
    """Return the types of a layer's arguments; none where they are names that only a type checker knows."""
    try:
        return get_type_hints(layer.__init__)
    except NameError:
        return {}


def fits(value: Any, annotation: Any) -> bool:
    """Return whether a value from a recipe has the type that a layer's argument asks for.

    A word of a ``Literal`` only has to be text: the layer names the nearest one when it is misspelt.
    """
    if isinstance(annotation, UnionType) or get_origin(annotation) is Union:
        return any(fits(value, choice) for choice in get_args(annotation))
    if get_origin(annotation) is Literal:
        return isinstance(value, str)
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation in (int, bool, str, NoneType):
        return type(value) is annotation
    return True


@dataclass(frozen=True)
class Recipe:
    """Ordered rules; at each site the first rule that matches acts.

    Args:
        rules: the rules, most specific first.

    Raises:
        InputError: for anything but rules.
    """

    rules: tuple[Rule, ...] = ()

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        given: Any = tuple(rules) if isinstance(rules, Iterable) else (rules,)
        if not isinstance(rules, Iterable) or not all(isinstance(rule, Rule) for rule in given):
            raise InputError(f"A recipe is made of rules, td.Recipe([td.Rule(...), ...]), not {rules!r}.")
        object.__setattr__(self, "rules", given)

    def to_data(self) -> list[dict[str, Any]]:
        """Return the recipe as a list of plain mappings."""
        return [rule.to_data() for rule in self.rules]

    @classmethod
    def from_data(cls, data: Iterable[Mapping[str, Any]]) -> "Recipe":
        """Return the recipe that a list of plain mappings describes.

        Raises:
            InputError: for anything but a list, and as `Rule.from_data`.
        """
        if not isinstance(data, Iterable) or isinstance(data, str | Mapping):
            raise InputError(
                f"A recipe is a list of rules, [{{select: ..., layer: ...}}, ...], not {data!r}."
            )
        return cls(Rule.from_data(rule) for rule in data)

    @classmethod
    def from_config(cls, config: Any) -> "Recipe":
        """Return the dropout that a Hugging Face config says, as rules for kinds of sites.

        A field at 0 or None gives no rule; where there is none, a model keeps what it has. Nor does a field
        of one place among others of its kind give one: ``pooler_dropout``, ``summary_last_dropout``,
        ``qa_dropout``. ``layerdrop`` becomes ``LayerDrop``. A head's field is a rule for the place before the
        output layer, whichever head the model has.

        Args:
            config: ``model.config``, its dictionary, or a few fields: ``{"resid_pdrop": 0.1}``.

        Raises:
            InputError: for a dropout field that is not known, is no rate, or contradicts another.
        """
        return cls(
            Rule(kind, layers.LayerDrop if kind == "block" else layers.Dropout, p=rate)
            for kind, rate in rates_in_config(config).items()
        )

    def to_yaml(self) -> str:
        """Return the recipe as YAML text.

        Raises:
            InputError: when an argument of a layer is an object that no file can hold.
        """
        import yaml

        try:
            return yaml.safe_dump(self.to_data(), sort_keys=False)
        except yaml.representer.RepresenterError as error:
            raise InputError(
                f"The recipe cannot be written: {error.args[-1]!r} is an argument of a layer, but only "
                "numbers, text, lists and mappings can be; make the object inside the layer."
            ) from None

    @classmethod
    def from_yaml(cls, source: str | Path) -> "Recipe":
        """Return the recipe in YAML text, or in a file when given a ``Path``.

        Raises:
            InputError: for anything but a list of rules; the message names the place in a file.
        """
        from .yaml_file import read_text, read_yaml

        data = (read_yaml(source) if isinstance(source, Path) else read_text(source, "The recipe")).data
        if data is not None and not isinstance(data, list):
            raise InputError("A recipe in YAML is a list of rules, each beginning with '- select:'.")
        return cls.from_data(data or [])
