"""An audit as a page: the model as a column of blocks, what drops where, and the findings at their place."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import nn

from ._events import Audit, Event, Finding, field_cells, generalized, show_rate
from ._places import block_paths, within
from ._template import rendered


@dataclass(frozen=True, kw_only=True)
class OperationRow:
    """Equal random operations of one card.

    Attributes:
        place: the path inside the block.
        kind, operation: as of the event.
        configured, resolved, measured: rates as text.
        share: what was measured, or else given, in percent, for a bar; None where neither is known.
        training, evaluation: how often it ran in each forward, in one block.
    """

    place: str
    kind: str
    operation: str
    configured: str
    resolved: str
    measured: str
    share: float | None
    training: int
    evaluation: int


@dataclass(kw_only=True)
class Card:
    """A block, several equal ones, or what runs beside them.

    Attributes:
        blocks: their paths, none for what runs outside the blocks.
        where: for what runs outside the blocks, where that is.
        events: what ran there.
        findings: those at one of these places.
    """

    blocks: list[str] = field(default_factory=list)
    where: str = ""
    events: list[Event] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The first and the last block's path, or where it is."""
        ends = (self.blocks[0], self.blocks[-1]) if self.blocks else (self.where,)
        return " … ".join(dict.fromkeys(ends))

    def rows(self) -> list[OperationRow]:
        """Return what ran, equal operations once, in order."""
        groups: dict[tuple, list[Event]] = {}
        for event in self.events:
            block = next((path for path in self.blocks if within(event.path, path)), "")
            place = event.path[len(block) :].lstrip(".") if block else event.path
            key = (generalized(place), event.kind, event.operation, event.configured, event.resolved)
            groups.setdefault(key, []).append(event)
        return [row_of(key, events, max(1, len(self.blocks))) for key, events in groups.items()]


def row_of(key: tuple, events: Sequence[Event], blocks: int) -> OperationRow:
    """Return equal operations as one row."""
    place, kind, operation, configured, resolved = key
    seen = [event.measured for event in events if event.measured is not None]
    measured = sum(seen) / len(seen) if seen else None
    rate = measured if measured is not None else resolved
    training = sum(event.training for event in events)
    return OperationRow(
        place=place or "the block itself",
        kind=kind.replace("_", " "),
        operation=operation,
        configured=show_rate(configured),
        resolved=show_rate(resolved),
        measured=show_rate(measured),
        share=None if rate is None else round(100 * rate, 1),
        training=-(-training // blocks),
        evaluation=-(-(len(events) - training) // blocks),
    )


def cards_of(audit: Audit, model: nn.Module) -> tuple[list[Card], list[Finding]]:
    """Return the column of blocks, and the findings that belong to none of it."""
    held = block_paths(model)
    blocks = [path for path, _ in model.named_modules() if path in held]
    inside: dict[str, Card] = {block: Card(blocks=[block]) for block in blocks}
    # What runs outside lies where it ran: behind the last block that had run by then.
    outside: dict[int, Card] = {}
    place_of: dict[str, int] = {}
    last = 0
    for event in audit.events:
        block = next((path for path in blocks if within(event.path, path)), None)
        if block is None:
            at = last if event.training else place_of.get(event.path, len(blocks))
            place_of.setdefault(event.path, at)
            outside.setdefault(at, Card(where=where(at, len(blocks)))).events.append(event)
        else:
            inside[block].events.append(event)
            last = max(last, blocks.index(block) + 1) if event.training else last
    column: list[Card] = []
    for at in range(len(blocks) + 1):
        column += [outside[at]] if at in outside else []
        column += [inside[blocks[at]]] if at < len(blocks) else []
    left = [finding for finding in audit.findings if not put(finding, column, model)]
    return joined(column), left


def where(at: int, blocks: int) -> str:
    """Return in words what lies behind so many of the blocks."""
    if not blocks:
        return "the whole model"
    return "before the blocks" if at == 0 else "behind the blocks" if at == blocks else "between the blocks"


def put(finding: Finding, column: list[Card], model: nn.Module) -> bool:
    """Give a finding to the cards that it concerns; return whether there are any."""
    pattern = re.compile(re.escape(finding.site).replace(r"\*", r"[^.]+"))
    paths = [path for path, _ in model.named_modules() if path and pattern.fullmatch(path)]
    found = []
    for card in column:
        ran = {event.path for event in card.events}
        if any(within(path, block) for path in paths for block in card.blocks) or ran & set(paths):
            found.append(card)
    for card in found:
        card.findings.append(finding)
    return bool(found)


def joined(column: Iterable[Card]) -> list[Card]:
    """Return the column with neighbours that are equal in all but their number as one card."""
    result: list[Card] = []
    for card in column:
        before = result[-1] if result else None
        if before is not None and before.blocks and card.blocks and alike(before, card):
            before.blocks += card.blocks
            before.events += card.events
        else:
            result.append(card)
    return result


def alike(one: Card, other: Card) -> bool:
    """Return whether two cards show the same."""

    def shown(card: Card) -> tuple:
        cells = [(r.place, r.kind, r.operation, r.configured, r.resolved) for r in card.rows()]
        counts = [(r.training, r.evaluation) for r in card.rows()]
        return generalized(card.blocks[0]), cells, counts, card.findings

    return shown(one) == shown(other)


def audit_page(audit: Audit, model: nn.Module, *, title: str) -> str:
    """Return an audit as an HTML page that loads nothing and runs nothing.

    Args:
        audit: of ``td.audit``.
        model: the model that was audited, whose blocks make the column.
        title: what was audited.
    """
    cards, findings = cards_of(audit, model)
    return rendered(
        "audit",
        "page.html.jinja",
        title=title,
        model=type(model).__name__,
        audit=audit,
        cards=cards,
        findings=findings,
        fields=[(f.name, *field_cells(f)) for f in audit.fields],
    )
