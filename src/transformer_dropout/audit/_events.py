"""What an audit says: events, config fields, findings."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from ..errors import InputError
from ..notebook import html_table

COLUMNS = ("site", "kind", "operation", "configured", "resolved", "measured", "training", "eval")


@dataclass(frozen=True, kw_only=True)
class Event:
    """One random or mask operation that ran.

    Attributes:
        path: the innermost module that was running, as ``model.get_submodule`` takes it.
        kind: the kind of site, ``unknown`` where nothing that was seen tells.
        operation: the function that was called, as ``F.dropout``.
        training: whether it ran in the training forward, else in the one in evaluation.
        configured: the rate that the module holds in an attribute, None where none was found.
        source: the path of that attribute.
        resolved: the rate that the kernel was given, None where it was given none.
        measured: the fraction of zeros in the mask as drawn, None where no mask could be seen.
        random: whether random numbers were drawn; a learned mask in evaluation draws none.
    """

    path: str
    kind: str
    operation: str
    training: bool
    configured: float | None = None
    source: str | None = None
    resolved: float | None = None
    measured: float | None = None
    random: bool = True

    @property
    def rate(self) -> float | None:
        """The probability of dropping: as resolved, else as configured, else as measured."""
        given = (self.resolved, self.configured, self.measured)
        return next((rate for rate in given if rate is not None), None)


@dataclass(frozen=True, kw_only=True)
class ConfigField:
    """A dropout field of the model's config.

    Attributes:
        name: dotted where a config lies inside a config.
        value: None where it is unset.
        read_at: patterns of the paths where its rate ran in training, empty where it ran nowhere; None where
            that cannot be told, because the field is 0 or another one has the same value.
    """

    name: str
    value: float | None
    read_at: tuple[str, ...] | None


# Every code of a finding.
CODES = (
    *(
        "active-in-eval",
        "dead-field",
        "drop-path-twice",
        "dropout-before-batch-norm",
        "dropout-before-output",
    ),
    *("dropout-before-softmax", "dropout-twice", "eval-while-training", "frozen-but-drops"),
    *("kernel-drops-attention-dropout", "never-called", "own-dropout-beside-recipe", "random-in-eval"),
    *("recompute-mask-differs", "schedule-recompiles", "varies-in-eval", "weight-decay-on-norms"),
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something to put right.

    Attributes:
        code: one of `CODES`.
        site: the path, or a pattern for all paths that it concerns.
        message: what was observed, and the fix.
    """

    code: str
    site: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What really ran in one training forward and one in evaluation.

    Attributes:
        events: every random or mask operation, in order, training first.
        findings: what to put right, as far as it was observed.
        fields: the dropout fields of the model's config.
        notes: what could not be observed, and why.
    """

    events: tuple[Event, ...]
    findings: tuple[Finding, ...]
    fields: tuple[ConfigField, ...] = ()
    notes: tuple[str, ...] = ()

    def raise_if(self, *codes: str) -> None:
        """Raise when there are findings.

        Args:
            codes: the codes that count; all when none is given.

        Raises:
            InputError: with the message of each finding.
        """
        found = [finding for finding in self.findings if not codes or finding.code in codes]
        if found:
            lines = "".join(f"\n- {f.code} at {f.site or 'the model'}: {f.message}" for f in found)
            raise InputError(f"The audit has {len(found)} finding{'s' * (len(found) > 1)}:{lines}")

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(asdict(self), indent=2)

    def _repr_html_(self) -> str:
        found = [(finding.code, finding.site or "the model", finding.message) for finding in self.findings]
        return "".join(
            html_table(caption, columns, rows)
            for caption, columns, rows in (
                ("What ran", *self.table()),
                (f"{len(found)} findings", ("code", "site", "message"), found),
                ("Notes", ("note",), [(note,) for note in self.notes]),
            )
            if rows
        )

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return columns and rows; places that differ in block numbers only share a row, and are counted."""
        groups: dict[tuple, list[Event]] = {}
        for event in self.events:
            key = (generalized(event.path), event.kind, event.operation, event.configured, event.resolved)
            groups.setdefault(key, []).append(event)
        rows: list[tuple[str, ...]] = []
        for (_, kind, operation, configured, resolved), events in groups.items():
            counts = [sum(event.training is training for event in events) for training in (True, False)]
            measured = [event.measured for event in events if event.measured is not None]
            mean = sum(measured) / len(measured) if measured else None
            rates = [show_rate(rate) for rate in (configured, resolved, mean)]
            site = merged({event.path for event in events}) or "(model)"
            rows.append((site, kind, operation, *rates, *(str(count) for count in counts)))
        return COLUMNS, rows


def field_cells(field: ConfigField) -> tuple[str, str]:
    """Return value and readers of a config's field, as text."""
    value = "unset" if field.value is None else f"{field.value:.4g}"
    if field.read_at is None:
        return value, "cannot be told"
    return value, "\n".join(at or "(model)" for at in field.read_at) or "nothing"


def show_rate(rate: float | None) -> str:
    """Return a rate for a table."""
    return "-" if rate is None else f"{rate:.4g}"


def generalized(path: str) -> str:
    """Return a path with ``*`` for each number in it."""
    return ".".join("*" if part.isdigit() else part for part in path.split("."))


def patterns(paths: Iterable[str]) -> tuple[str, ...]:
    """Return one Unix pattern for all paths that differ only in numbers; a path without a fellow as it is."""
    groups: dict[str, set[str]] = {}
    for path in paths:
        groups.setdefault(generalized(path), set()).add(path)
    return tuple(merged(group) for group in groups.values())


def merged(paths: Iterable[str]) -> str:
    """Return a pattern for paths of one length, with ``*`` where they differ."""
    columns = zip(*(path.split(".") for path in paths), strict=True)
    return ".".join(parts[0] if len(set(parts)) == 1 else "*" for parts in columns)
