"""The random operations of a run, each with the rate that it was given."""

from dataclasses import dataclass

from .._written_rates import number_in
from ..observation.stack import is_dropout_module
from .graph import ModuleCall, Node, RunGraph
from .rates import rate_among


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One random operation of the model's own.

    Attributes:
        node: what drew.
        acts: the node that holds what was dropped: the same, or a product with what was drawn.
        path: the innermost module that is no dropout: whose code it is.
        module: the path of the dropout module that did it, None where a function did.
        rate: the path of the rate that it read; None where none was found.
        name: of the function.
        whole: whether one decision is made for a whole sample, or for everything.
    """

    node: int
    acts: int
    path: str
    module: str | None
    rate: str | None
    name: str
    whole: bool
    attention: bool = False


def draws_of(run: RunGraph, rates: dict[str, float]) -> list[Draw]:
    """Return the random operations of a run, in order."""
    found = []
    for node in run.nodes:
        if not node.drawn:
            continue
        inner = run.calls[node.call]
        leaf = is_dropout_module(inner.module)
        reader = next((c for c in reversed(inner.around) if not is_dropout_module(run.calls[c].module)), 0)
        attention = "attention" in node.name
        # A number that stands in the code is no other's, whatever is done with the result.
        written = rate_in_code(node, inner)
        acts = node.index if run.activations(node) else consumer(run, node.index, inner)
        shape = node.drawn[0]
        found.append(
            Draw(
                node=node.index,
                acts=acts,
                path=run.calls[reader].path,
                module=inner.path if leaf else None,
                rate=rate_among(node.numbers, rates)
                or (written if written and number_in(written) else None)
                or rate_near(run, node.index, inner, rates)
                or written,
                name=node.name,
                whole=not attention and all(size == 1 for size in shape[1:]),
                attention=attention,
            )
        )
    return found


def rate_in_code(node: Node, around: ModuleCall) -> str | None:
    """Return the rate that stands in the code of the module around a call; None where none was seen."""
    return None if node.written is None else f"{around.path}.{node.written}".lstrip(".")


def consumer(run: RunGraph, node: int, around: ModuleCall) -> int:
    """Return the first node that puts a drawn mask on an activation; the draw itself where none does."""
    end = around.end if around.end >= 0 else len(run.nodes)
    for other in run.nodes[node + 1 : end]:
        if other.before >> node & 1 and run.activations(other):
            return other.index
    return node


def rate_near(run: RunGraph, node: int, around: ModuleCall, rates: dict[str, float]) -> str | None:
    """Return the rate that what was drawn is compared with or added to, else the only one of its module."""
    end = around.end if around.end >= 0 else len(run.nodes)
    drawn_since = 0
    for other in run.nodes[node + 1 : end]:
        drawn_since |= bool(other.drawn) << other.index
        # A number that meets what was drawn since is the rate of that.
        if other.before >> node & 1 and not other.before & drawn_since:
            rate = rate_among(other.numbers, rates)
            if rate is not None:
                return rate
    own = [rate for rate in rates if rate.rpartition(".")[0] == around.path]
    return own[0] if len(own) == 1 and is_dropout_module(around.module) else None
