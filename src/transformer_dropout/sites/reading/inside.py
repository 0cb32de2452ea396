"""The places inside the blocks of a run."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from .._site import Kind, Site
from .blocks import BlockCalls, stacks_of
from .branches import (
    EVERYTHING,
    SAME,
    SCALES,
    AttentionNodes,
    Branch,
    Tail,
    attentions_of,
    between,
    branches_of,
    linears_in,
    tail_of,
)
from .causality import mixes, mixes_tokens
from .graph import PRODUCTS, RECURRENT, SUMS, ModuleCall, Node, RunGraph, bits, is_packed_linear
from .passages import Passage, Passages, rates_of
from .random import Draw

MLP = re.compile(r"mlp|ffn|feed_?forward|dense_?relu|intermediate|moe|expert|\bfc\d|\.ff\b", re.IGNORECASE)


class BlockReader:
    """Names the places inside the blocks of a run.

    Args:
        run: the run.
        draws: its random operations.
        gates: the hidden widths of experts that compute them in a method of their own.
    """

    def __init__(self, run: RunGraph, draws: list[Draw], gates: dict[str, int]) -> None:
        self.gates = gates
        self.run, self.draws = run, [d for d in draws if ".lora_dropout." not in f"{d.module}."]
        self.attentions = attentions_of(run)
        self.branches = branches_of(run, self.attentions)
        for branch in self.branches:
            mixing = tuple(a for a in branch.attentions if mixes_tokens(run, branch, a))
            self.attentions = [a for a in self.attentions if a in mixing or a not in branch.attentions]
            branch.attentions = mixing
        self.stacks = stacks_of(run, self.branches)
        self.stacked = sum({1 << b.add for s in self.stacks for block in s.blocks for b in block.branches})
        self.places = Passages(run, self.draws)
        self.found: list[tuple[int, Site]] = []
        self.where: dict[int, dict[str, Any]] = {}
        self.ends: dict[int, list[tuple[Branch, Kind | None, Tail]]] = {}
        self.read_ends()

    def add(self, kind: Kind, place: Passage | None, **where: Any) -> None:
        """Take note of a place."""
        if place is not None:
            self.found.append((place.node, place.site(kind, **where)))

    def read_block(self, block: BlockCalls, where: dict[str, Any]) -> None:
        """Name the places inside a block, and the block."""
        around = None if block.path is None else self.run.calls[block.calls[0]]
        once = max(len(block.calls), 1)
        for branch in block.branches:
            for attention in branch.attentions:
                self.add("attention_weights", self.places.weights(attention), **where)
            for part, kind, tail in self.ends[branch.add]:
                self.read_end(part, kind, tail, around, once, where)
        if around is None:
            return
        for attention in self.attentions:
            # Its output takes the place of the stream.
            alone = not any(attention in branch.attentions for branch in self.branches)
            if alone and around.holds(attention.product):
                self.add("attention_weights", self.places.weights(attention), **where)
                if not self.run.is_activation(attention.product):
                    self.add("attention_output", self.projection_of(attention, around), **where)
        streams = self.streams(block)
        whole = [draw for draw in self.draws if draw.whole and around.holds(draw.node)]
        rates = rates_of(whole)
        if streams:
            self.places.taken |= {draw.node for draw in whole if draw.rate is not None}
        self.read_rest_of(around, block, where)
        if streams:
            place = Passage(
                node=around.end,
                path=around.path,
                access="block",
                width=common_width(around, streams),
                rates=rates,
                streams=streams,
            )
            self.add("block", place, **where)

    def projection_of(self, attention: AttentionNodes, around: ModuleCall) -> Passage | None:
        """Return the place behind an attention among constants, as of queries that have seen no token yet."""
        run = self.run
        behind = (node for node in run.nodes[attention.product : around.end] if run.is_linear(node))
        first = next((node.index for node in behind if run.depends(node.index, attention.product)), None)
        return None if first is None else self.places.at(Tail(values=[first]), within=around)

    def streams(self, block: BlockCalls) -> tuple[int, ...]:
        """Return the places of the tensors that a block is given and returns with something added."""
        call = None if block.path is None else self.run.calls[block.calls[0]]
        # A list would call a layer that is put into it.
        if call is None or isinstance(call.module, nn.Sequential):
            return ()
        sums = {branch.add for branch in block.branches}
        pairs = zip(call.inputs, call.outputs, *call.shapes, strict=False)
        found = []
        for place, (entered, left, given, returned) in enumerate(pairs):
            # The first is the stream, unless it is left as it is; of others it has to show.
            first = place == 0 and (left is None or left != entered)
            shown = left is not None and entered is not None and self.run.depends(left, entered)
            other = place > 0 and shown and tail_of(self.run, left or 0, EVERYTHING).values[0] in sums
            if given == returned and place < call.plain and (first or other):
                found.append(place)
        return tuple(found)

    def parts(self, branch: Branch) -> Iterator[Branch]:
        """Yield an attention and an MLP that are added together, each as a branch; else the branch itself."""
        products = sum(1 << attention.product for attention in branch.attentions)
        tail = tail_of(self.run, branch.end, branch.inside, products)
        stop = self.run.nodes[tail.values[0]]
        sources = [s for s in self.run.activations(stop) if branch.inside >> s & 1]
        mixing = [bool(self.run.nodes[s].before & products) for s in sources]
        # Joined tokens are no sum: a class token may be all that attends.
        if stop.name not in SUMS or not products or True not in mixing or False not in mixing:
            yield branch
            return
        own = [draw for draw in self.draws if draw.acts in tail.values]
        for source in sources:
            before = self.run.nodes[source].before
            inside = branch.inside & before
            attentions = tuple(a for a in branch.attentions if before >> a.product & 1)
            yield Branch(
                add=branch.add,
                skip=branch.skip,
                end=source,
                inside=inside,
                attentions=attentions,
                joint=tuple(own),
            )

    def read_end(
        self,
        branch: Branch,
        kind: Kind | None,
        tail: Tail,
        around: ModuleCall | None,
        once: int,
        where: dict[str, Any],
    ) -> None:
        """Name the places at the end of one branch."""
        if kind is None:
            return
        place = self.places.at(tail, within=around, outermost=kind == "mlp_output", once=once)
        if place is not None and branch.joint:
            shared = tuple(draw.rate for draw in branch.joint if draw.rate is not None)
            self.places.taken |= {draw.node for draw in branch.joint}
            place = replace(place, rates=(*place.rates, *shared))
        if kind == "mlp_output" and not self.read_experts(branch, where) and tail.linear:
            hidden = self.hidden_of(branch, tail)
            if hidden is not None:
                self.add("mlp_hidden", self.places.before(*hidden, once), **where)
        self.add(kind, place, **where)

    def end_of(self, branch: Branch) -> tuple[Kind | None, Tail]:
        """Return what a branch adds, None where neither attention nor MLP does, and the values at its end."""
        products = sum(1 << attention.product for attention in branch.attentions)
        tail = tail_of(self.run, branch.end, branch.inside, products)
        if branch.attentions:
            return "attention_output", tail
        # What drops a whole branch is its output, a convolution's too.
        drops = any(d.acts in tail.values and not d.whole for d in self.draws)
        if drops and self.weighs_tokens(branch):
            return "attention_output", tail
        return ("mlp_output" if drops or self.is_mlp(branch) else None), tail

    def read_ends(self) -> None:
        """Find out what each branch adds, and let the places know which values are of one kind."""
        blocks = (block for stack in self.stacks for block in stack.blocks)
        for branch in (branch for block in blocks for branch in block.branches):
            ends = self.ends[branch.add] = [(part, *self.end_of(part)) for part in self.parts(branch)]
            for part, kind, tail in ends:
                if kind is None:
                    continue
                self.places.kinds |= dict.fromkeys(tail.values, kind)
                hidden = self.hidden_of(part, tail) if kind == "mlp_output" and tail.linear else None
                if hidden is not None:
                    inner: Kind = "mlp_hidden"
                    self.places.kinds |= dict.fromkeys(hidden[1].values, inner)

    def read_experts(self, branch: Branch, where: dict[str, Any]) -> bool:
        """Name the place of the hidden units of experts; return whether a branch holds such."""
        run = self.run
        numbers = {
            number for node in bits(branch.inside) for number in run.calls[run.nodes[node].call].around
        }
        calls = [run.calls[number] for number in sorted(numbers)]
        for call in calls:
            if call.path in self.gates:
                width = self.gates[call.path]
                self.add(
                    "mlp_hidden",
                    Passage(node=call.begin, path=call.path, access="gate", width=width),
                    **where,
                )
                return True
        for call in calls:
            # One activation that every expert calls.
            name = call.path.rpartition(".")[2]
            owner = run.model.get_submodule(call.path.rpartition(".")[0])
            if name == "act_fn" and call.shapes[1] and holds_experts(owner):
                width = call.shapes[1][0][-1]
                place = Passage(node=call.begin, path=call.path, access="output", width=width)
                self.add("mlp_hidden", place, **where)
                return True
        return False

    def hidden_of(self, branch: Branch, tail: Tail) -> tuple[ModuleCall, Tail] | None:
        """Return the last product of an MLP but square ones, and the hidden units that it is given."""
        run, last, products = self.run, tail.values[0], 0
        for node in bits(branch.inside):
            products |= run.is_linear(run.nodes[node]) << node
        while True:
            call = run.calls[run.nodes[last].call]
            sources = [s for s in run.activations(run.nodes[last]) if branch.inside >> s & 1]
            if not sources or not is_product(call) or products.bit_count() < 2:
                return None
            hidden = tail_of(run, sources[0], branch.inside)
            earlier = run.nodes[hidden.values[0]]
            # A product of another product's result, with no activation between, mixes the MLP's output.
            passed_on = hidden.linear and all(passes_on(run.nodes[value]) for value in hidden.values[1:])
            if not (passed_on and earlier.before & products & ~(1 << earlier.index)):
                return call, hidden
            last = earlier.index

    def is_mlp(self, branch: Branch) -> bool:
        """Return whether a branch without attention works on each token alone."""
        outer = set(self.run.calls[self.run.nodes[branch.add].call].around)
        around = {
            number
            for node in bits(branch.inside)
            for number in self.run.calls[self.run.nodes[node].call].around
        }
        named = any(is_called_mlp(self.run.calls[number]) for number in around - outer)
        return named or not mixes(self.run, branch.skip, branch.end)

    def weighs_tokens(self, branch: Branch) -> bool:
        """Return whether a branch mixes tokens by a product of two activations, as linear attention does."""
        run = self.run
        products = (run.nodes[node] for node in bits(branch.inside) if run.nodes[node].name in PRODUCTS)
        both = any(sum(branch.inside >> s & 1 for s in run.activations(node)) > 1 for node in products)
        return both and mixes(run, branch.skip, branch.end)

    def read_rest_of(self, around: ModuleCall, block: BlockCalls, where: dict[str, Any]) -> None:
        """Name the places of what drops inside a block and at the end of no branch."""
        for draw in self.draws:
            if draw.node in self.places.taken or not around.holds(draw.node):
                continue
            if draw.name == "rand" and draw.rate is None:
                continue
            inside = [branch for branch in block.branches if branch.inside >> draw.acts & 1]
            before = [branch for branch in block.branches if self.run.depends(draw.acts, branch.add)]
            kind: Kind = "other" if self.is_constant(draw) else "embedding"
            if inside:
                kind = self.kind_in(inside[0], draw)
            elif before:
                kind = self.kind_behind(before[-1], draw)
            self.add_own(draw, kind, around, **where)

    def kind_in(self, branch: Branch, draw: Draw) -> Kind:
        """Return what is dropped inside a branch and not at its end."""
        if draw.whole and draw.rate is not None:
            return "block"
        if branch.attentions:
            return "attention_output"
        later = (n for n in bits(branch.inside) if n > draw.acts and self.run.depends(n, draw.acts))
        return "mlp_hidden" if any(self.run.is_linear(self.run.nodes[n]) for n in later) else "mlp_output"

    def kind_behind(self, branch: Branch, draw: Draw) -> Kind:
        """Return what is dropped behind a branch and in no other."""
        if draw.whole and draw.rate is not None:
            return "block"
        since = between(self.run, branch.add, draw.acts)
        mixed = [attention.product for attention in self.attentions if since >> attention.product & 1]
        products = linears_in(self.run, between(self.run, max(mixed, default=branch.add), draw.acts))
        # Behind an attention that adds nothing itself there is one product, its projection.
        attended = products < 2 if mixed else bool(branch.attentions) and not products
        return "attention_output" if attended else "mlp_output"

    def is_constant(self, draw: Draw) -> bool:
        """Return whether what is dropped depends on no input and is added to what does."""
        uses = [node for node in self.run.nodes[draw.acts + 1 :] if draw.acts in node.sources]
        added = any(node.name in SUMS and self.run.activations(node) for node in uses)
        return added and not self.run.is_activation(draw.acts)

    def kinds_at(self, rate: str | None) -> set[Kind]:
        """Return the kinds of the places that set a rate of the model's own."""
        return {site.kind for _, site in self.found if rate and rate in (site.rate, *site.silences)}

    def add_own(self, draw: Draw, kind: Kind, around: ModuleCall | None = None, **where: Any) -> None:
        """Take note of the place of a random operation that is at the end of no branch."""
        place = None
        inner = draw.whole or draw.name in RECURRENT
        own = around is None and self.places.serves_alike(draw)
        if draw.rate is not None and not inner and not own and self.run.is_activation(draw.node):
            place = self.places.at(tail_of(self.run, draw.acts, EVERYTHING), within=around)
        kinds = self.kinds_at(draw.rate)
        if place is None and not own and kinds:
            # One number is set at one place, or a layer there and the number would both drop.
            self.places.taken.add(draw.node)
            if kind in kinds:
                return
            place = self.places.unreached(draw)
        place = place or self.places.own(draw)
        self.add("other" if place.access == "none" else kind, place, **where)


def holds_experts(module: nn.Module) -> bool:
    """Return whether a module holds the weights of several experts, each matrix in one tensor."""
    return any(parameter.ndim == 3 for parameter in module.parameters(recurse=False))


def is_called_mlp(call: ModuleCall) -> bool:
    """Return whether a module has a name that MLPs have."""
    return MLP.search(f"{call.path.rpartition('.')[2]} {type(call.module).__name__}") is not None


def passes_on(node: Node) -> bool:
    """Return whether a function returns what it was given, but for its scale, shape, and what it drops."""
    return bool(node.drawn) or node.name in SAME or node.name in SCALES


def is_product(call: ModuleCall) -> bool:
    """Return whether a module is one product of weights: a linear layer of any make."""
    own = not any(call.module.children()) and next(call.module.parameters(recurse=False), None) is not None
    return own or is_packed_linear(call.module)


def common_width(call: ModuleCall, streams: tuple[int, ...]) -> int | None:
    """Return the channels of a block's streams; None where they differ."""
    widths = {call.shapes[1][place][-1] for place in streams}
    return widths.pop() if len(widths) == 1 else None
