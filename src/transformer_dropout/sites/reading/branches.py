"""Residual branches and attentions in the graph of a run."""

from dataclasses import dataclass, field
from math import prod
from typing import Any

from .graph import PRODUCTS, SUMS, Node, RunGraph, bits

FUSED = frozenset(
    {"scaled_dot_product_attention", "multi_head_attention_forward", "flex_attention", "flash_attn_func"}
)
SOFTMAX = frozenset({"softmax", "_softmax", "gumbel_softmax", "sparsemax"})
# What ends a way from a softmax to a product: a router chooses, an attention mixes.
CHOICES = frozenset({"topk", "argmax", "max", "sum", "mean", "gather", "log", "sort", "amax", "multinomial"})
# Of what these are given the first is what they return a part of.
CHOSEN = frozenset(
    {"__getitem__", "gather", "index_select", "take_along_dim", "masked_select", "masked_fill"}
)
NONLINEAR = frozenset({"tanh", "gelu", "relu", "silu", "softmax"})
LONGEST_WAY = 16
EVERYTHING = -1


@dataclass(frozen=True, kw_only=True)
class AttentionNodes:
    """Where values are mixed.

    Attributes:
        weights: the node of the softmax; that of the fused function where one does it all.
        product: the node of the mixed values.
    """

    weights: int
    product: int


@dataclass(kw_only=True)
class Branch:
    """What is added to a residual stream.

    Attributes:
        add: the node of the sum.
        skip: the node that goes around.
        end: the node of what is added.
        inside: what was computed from the one to the other, as bits.
        attentions: those inside.
        joint: draws on the sum of this and another branch.
    """

    add: int
    skip: int
    end: int
    inside: int
    attentions: tuple[AttentionNodes, ...] = ()
    joint: tuple[Any, ...] = ()


@dataclass(kw_only=True)
class Tail:
    """The end of a branch: values that hold the same tokens, from the last product of weights on.

    Attributes:
        values: their nodes, the first is the product's.
        linear: whether the first is a product with weights, rather than a sum of several things.
    """

    values: list[int] = field(default_factory=list)
    linear: bool = False


def attentions_of(run: RunGraph) -> list[AttentionNodes]:
    """Return every attention of a run, in order."""
    uses: dict[int, list[int]] = {}
    for node in run.nodes:
        for source in node.sources:
            uses.setdefault(source, []).append(node.index)
    found = []
    for node in run.nodes:
        if node.name in FUSED:
            found.append(AttentionNodes(weights=node.index, product=node.index))
        elif node.name in SOFTMAX and len(node.shape) > 1 and run.is_activation(node.index):
            product = mixing_product(run, uses, node.index)
            if product is not None:
                found.append(AttentionNodes(weights=node.index, product=product))
    return found


def mixing_product(run: RunGraph, uses: dict[int, list[int]], softmax: int) -> int | None:
    """Return the product of a softmax with values; None where it chooses or is returned."""
    front, seen = [softmax], {softmax}
    for _ in range(LONGEST_WAY):
        after: list[int] = []
        for index in (use for node in front for use in uses.get(node, ())):
            node = run.nodes[index]
            if index in seen or node.name in CHOICES:
                continue
            seen.add(index)
            if node.name in PRODUCTS:
                others = [s for s in run.activations(node) if not run.depends(s, softmax)]
                if others or len(node.operands) > 1:
                    return index
                continue
            # Heads may talk to each other before values are mixed.
            talks = len(node.shape) > 3 and prod(node.shape) == prod(run.nodes[softmax].shape)
            if talks or not run.is_linear(node):
                after.append(index)
        front = after
    return None


def branches_of(run: RunGraph, attentions: list[AttentionNodes]) -> list[Branch]:
    """Return the residual branches of a run, in order; among nested ones those that do the work."""
    found: list[Branch] = []
    sums = 0
    for node in run.nodes:
        branch = branch_at(run, node, {known.add: known.skip for known in found}, attentions)
        branch = branch or projected(run, node, attentions)
        if branch is None:
            continue
        branch.attentions = tuple(a for a in attentions if branch.inside >> a.product & 1)
        if branch.inside & sums:
            inner = [known for known in found if branch.inside >> known.add & 1]
            if not outdoes(run, branch, inner):
                continue
            found = [known for known in found if known not in inner]
        if branch.attentions or linears_in(run, branch.inside):
            found.append(branch)
            sums |= 1 << node.index
    return found


def outdoes(run: RunGraph, branch: Branch, inner: list[Branch]) -> bool:
    """Return whether the sums inside a branch are details of it, as a short convolution is."""
    held = 0
    for known in inner:
        held |= known.inside
    if branch.attentions:
        own = branch.inside & ~held
        if inner and linears_in(run, own) > 1 and all(adds_queries(run, known) for known in inner):
            return True
        # A block around others is no attention of theirs.
        details = all(linears_in(run, known.inside) < 2 for known in inner)
        return details and any(not held >> attention.product & 1 for attention in branch.attentions)
    inside, own = linears_in(run, branch.inside & held), linears_in(run, branch.inside & ~held)
    return bool(inner) and own > max(inside, 1)


def adds_queries(run: RunGraph, branch: Branch) -> bool:
    """Return whether a sum adds queries to what they were answered, before the projection of both."""
    for attention in branch.attentions:
        operands = run.activations(run.nodes[attention.product])
        others = [s for s in operands if s != branch.skip and not run.depends(s, branch.skip)]
        ends = tail_of(run, branch.end, branch.inside, 1 << attention.product).values
        if others and ends[0] == attention.product:
            return True
    return False


def linears_in(run: RunGraph, nodes: int) -> int:
    """Return how many of some nodes multiply with weights."""
    return sum(run.is_linear(run.nodes[index]) for index in bits(nodes))


def branch_at(
    run: RunGraph, node: Node, streams: dict[int, int], attentions: list[AttentionNodes]
) -> Branch | None:
    """Return the branch that a sum adds; None for another sum, or anything else.

    Args:
        run: the run.
        node: the sum.
        streams: what goes around, by the sums known so far: two branches may be added one after the other.
        attentions: those of the run.
    """
    if node.name not in SUMS:
        return None
    operands = addends(run, node)
    if len(operands) < 2 or len(node.shape) < 2:
        return None
    for skip, end in ((operands[0], operands[-1]), (operands[-1], operands[0])):
        # Positions are added to a stream again and again; learned latents are a stream, to which a branch is.
        latents = not run.is_activation(skip)
        if latents and not tail_of(run, end, EVERYTHING).linear:
            continue
        root = stream(run, skip)
        for begin in (root, streams.get(root), with_other_tokens(run, root)):
            if begin is None or begin == end or not run.depends(end, begin):
                continue
            inside = between(run, begin, end)
            # Latents attend to each other before they have seen a token; of what else weights give, none is.
            if run.is_activation(end) or any(inside >> attention.product & 1 for attention in attentions):
                return Branch(add=node.index, skip=begin, end=end, inside=inside)
    return None


def projected(run: RunGraph, node: Node, attentions: list[AttentionNodes]) -> Branch | None:
    """Return the branch of an attention that a sum adds to a projection of what attention was given."""
    operands = addends(run, node) if node.name in SUMS and len(node.shape) > 2 else []
    for skip, end in zip(operands, operands[::-1], strict=True):
        tail = tail_of(run, skip, EVERYTHING)
        given = run.activations(run.nodes[tail.values[0]])
        if not tail.linear or len(given) != 1 or run.depends(skip, end) or len(operands) != 2:
            continue
        begin = stream(run, given[0])
        inside = between(run, begin, end)
        own = [attention for attention in attentions if inside >> attention.product & 1]
        ends = tail_of(run, end, inside, sum(1 << attention.product for attention in own))
        if own and ends.linear and run.depends(end, begin):
            return Branch(add=node.index, skip=begin, end=end, inside=inside)
    return None


def addends(run: RunGraph, node: Node) -> list[int]:
    """Return what a sum adds, all of its shape: activations, and what weights alone give."""
    return [source for source, shape in node.operands if source is not None and shape == node.shape]


def with_other_tokens(run: RunGraph, index: int) -> int | None:
    """Return the stream that some tokens were taken out of, as a class token is; None for anything else."""
    node = run.nodes[index]
    sources = run.activations(node)
    if node.name != "__getitem__" or len(sources) != 1:
        return None
    given = run.nodes[sources[0]].shape
    taken = len(given) == len(node.shape) > 2 and given[-1] == node.shape[-1]
    return stream(run, sources[0]) if taken else None


def stream(run: RunGraph, index: int) -> int:
    """Return the node that a value is, but for its scale, dtype and shape."""
    for _ in range(LONGEST_WAY):
        node = run.nodes[index]
        sources = run.activations(node)
        if node.name in PRODUCTS and len(sources) == 2 and node.shape == run.nodes[sources[1]].shape:
            # Several streams, which a small matrix mixes.
            index = sources[1]
            continue
        # By a number, or by weights of its own, but not by what is computed from tokens.
        same = node.name in SAME or node.name in SCALES
        if not same or len(sources) != 1:
            return index
        index = sources[0]
    return index


SCALES = frozenset({"mul", "__mul__", "__rmul__", "div", "__truediv__", "mul_"})
SAME = frozenset(
    {
        *("to", "float", "half", "bfloat16", "type", "type_as", "clone", "contiguous", "view", "reshape"),
        *("flatten", "unflatten", "squeeze", "unsqueeze", "transpose", "permute", "__get__", "identity"),
    }
)


def between(run: RunGraph, start: int, end: int) -> int:
    """Return the nodes from which one depends and that depend on another, as bits, without the first."""
    found = 0
    for index in bits(run.nodes[end].before & ~run.nodes[start].before):
        if run.nodes[index].before >> start & 1:
            found |= 1 << index
    return found


def tail_of(run: RunGraph, end: int, inside: int, products: int = 0) -> Tail:
    """Follow a value back to the last product of weights in it.

    Args:
        run: the run.
        end: the value.
        inside: the nodes to stay in, as bits.
        products: nodes at which to stop, as bits.
    """
    tail = Tail(values=[end])
    while True:
        index = tail.values[0]
        node = run.nodes[index]
        if products >> index & 1 or run.is_linear(node):
            tail.linear = run.is_linear(node) or node.name in FUSED
            return tail
        # Of a norm written out, what it was given.
        sources = around_module(run, index, inside, products)
        if len(sources) != 1:
            given = run.activations(node)[:1] if node.name in CHOSEN else run.activations(node)
            sources = [source for source in given if inside >> source & 1]
        if node.name in SCALES and len(sources) == 2:
            sources = without_gate(run, sources)
        if len(sources) != 1:
            return tail
        tail.values.insert(0, sources[0])


def without_gate(run: RunGraph, factors: list[int]) -> list[int]:
    """Return the larger of two factors, where the other is one number for several of its numbers."""
    sizes = [prod(run.nodes[factor].shape) for factor in factors]
    return factors if sizes[0] == sizes[1] else [factors[sizes.index(max(sizes))]]


def around_module(run: RunGraph, index: int, inside: int, products: int) -> list[int]:
    """Return the input of the module whose output a value is, when it holds no product of weights."""
    for call in run.returning.get(index, ()):
        if not call.inputs:
            continue
        own = [run.nodes[n] for n in range(call.begin, min(call.end, index + 1))]
        if any(run.is_linear(n) or n.drawn or n.name == "embedding" or products >> n.index & 1 for n in own):
            continue
        given = [n for n in call.inputs if n is not None and inside >> n & 1]
        if len(set(given)) == 1 and given[0] != index:
            return given[:1]
    return []
