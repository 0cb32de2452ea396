"""The places inside the blocks of a run."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from .._site import Kind, Site
from .blocks import BlockCalls, stacks_of
from .branches import EVERYTHING, SAME, SCALES, Branch, Tail, attentions_of, branches_of, tail_of
from .causality import mixes, mixes_tokens
from .graph import RECURRENT, SUMS, ModuleCall, Node, RunGraph, bits, is_packed_linear
from .passages import Passage, Passages
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
        self.places = Passages(run, self.draws)
        self.found: list[tuple[int, Site]] = []
        self.where: dict[int, dict[str, Any]] = {}

    def add(self, kind: Kind, place: Passage | None, **where: Any) -> None:
        """Take note of a place."""
        if place is not None:
            self.found.append((place.node, place.site(kind, **where)))

    def read_block(self, block: BlockCalls, where: dict[str, Any]) -> None:
        """Name the places inside a block, and the block."""
        around = None if block.path is None else self.run.calls[block.calls[0]]
        once = max(len(block.calls), 1)
        whole: list[Draw] = []
        for branch in block.branches:
            for attention in branch.attentions:
                self.add("attention_weights", self.places.weights(attention), **where)
            for part in self.parts(branch):
                self.read_branch(part, around, once, where)
                whole += [d for d in self.draws if d.whole and part.inside >> d.acts & 1]
        if around is None:
            return
        for attention in self.attentions:
            # Its output takes the place of the stream.
            alone = not any(attention in branch.attentions for branch in self.branches)
            if alone and around.holds(attention.product):
                self.add("attention_weights", self.places.weights(attention), **where)
        rates = tuple(dict.fromkeys(draw.rate for draw in whole if draw.rate is not None))
        self.places.taken |= {draw.node for draw in whole if draw.rate is not None}
        self.read_rest_of(around, block, where)
        if adds_to_its_input(around):
            shape = around.shapes[1][0]
            node = around.end
            place = Passage(node=node, path=around.path, access="block", width=shape[-1], rates=rates)
            self.add("block", place, **where)

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

    def read_branch(
        self, branch: Branch, around: ModuleCall | None, once: int, where: dict[str, Any]
    ) -> None:
        """Name the places of one branch."""
        products = sum(1 << attention.product for attention in branch.attentions)
        tail = tail_of(self.run, branch.end, branch.inside, products)
        if branch.attentions:
            kind: Kind = "attention_output"
        elif self.is_mlp(branch) or any(d.acts in tail.values and not d.whole for d in self.draws):
            # What drops a whole branch is its output, a convolution's too.
            kind = "mlp_output"
        else:
            return
        place = self.places.at(tail, within=around, outermost=kind == "mlp_output", once=once)
        if place is not None and branch.joint:
            shared = tuple(draw.rate for draw in branch.joint if draw.rate is not None)
            self.places.taken |= {draw.node for draw in branch.joint}
            place = replace(place, rates=(*place.rates, *shared))
        if kind == "mlp_output" and not self.read_experts(branch, where) and tail.linear:
            self.read_hidden(branch, tail, once, where)
        self.add(kind, place, **where)

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

    def read_hidden(self, branch: Branch, tail: Tail, once: int, where: dict[str, Any]) -> None:
        """Name the place of the hidden units of an MLP: what its last product but square ones is given."""
        run, last, products = self.run, tail.values[0], 0
        for node in bits(branch.inside):
            products |= run.is_linear(run.nodes[node]) << node
        while True:
            call = run.calls[run.nodes[last].call]
            sources = [s for s in run.activations(run.nodes[last]) if branch.inside >> s & 1]
            if not sources or not is_product(call) or products.bit_count() < 2:
                return
            hidden = tail_of(run, sources[0], branch.inside)
            earlier = run.nodes[hidden.values[0]]
            # A product of another product's result, with no activation between, mixes the MLP's output.
            passed_on = hidden.linear and all(passes_on(run.nodes[value]) for value in hidden.values[1:])
            if not (passed_on and earlier.before & products & ~(1 << earlier.index)):
                break
            last = earlier.index
        self.add("mlp_hidden", self.places.before(call, hidden, once), **where)

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
                later = (
                    n for n in bits(inside[0].inside) if n > draw.acts and self.run.depends(n, draw.acts)
                )
                ends = not any(self.run.is_linear(self.run.nodes[n]) for n in later)
                kind = "mlp_output" if ends else "mlp_hidden"
                kind = "attention_output" if inside[0].attentions else kind
            elif before:
                kind = "attention_output" if before[-1].attentions else "mlp_output"
            self.add_own(draw, kind, around, **where)

    def is_constant(self, draw: Draw) -> bool:
        """Return whether what is dropped depends on no input and is added to what does."""
        uses = [node for node in self.run.nodes[draw.acts + 1 :] if draw.acts in node.sources]
        added = any(node.name in SUMS and self.run.activations(node) for node in uses)
        return added and not self.run.is_activation(draw.acts)

    def add_own(self, draw: Draw, kind: Kind, around: ModuleCall | None = None, **where: Any) -> None:
        """Take note of the place of a random operation that is at the end of no branch."""
        place = None
        inner = draw.whole or draw.name in RECURRENT
        if draw.rate is not None and not inner and self.run.is_activation(draw.node):
            place = self.places.at(tail_of(self.run, draw.acts, EVERYTHING), within=around)
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


def adds_to_its_input(call: ModuleCall) -> bool:
    """Return whether a block returns a tensor as it was given one."""
    given, returned = call.shapes
    if isinstance(call.module, nn.Sequential):
        # It would call a layer that is put into it.
        return False
    return bool(given) and bool(returned) and given[0] == returned[0]
