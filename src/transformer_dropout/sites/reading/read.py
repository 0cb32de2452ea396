"""The sites of a model, read off one observed run."""

import inspect
from dataclasses import replace
from typing import Any

from torch import nn

from .._site import Kind, Site
from ..observation.restore import unchanged
from .blocks import BlockCalls, BlockSequence
from .branches import EVERYTHING, NONLINEAR, Branch, Tail, tail_of
from .causality import sees_later
from .experts import gates_seen
from .graph import RECURRENT, Recorder, bits
from .inside import BlockReader, is_product
from .passages import TORCH_LAYERS
from .random import Draw, draws_of
from .rates import told_apart


def read_run(model: nn.Module, inputs: Any) -> list[Site]:
    """Run a model once, forward and backward, and return its sites; it is then as it was.

    Args:
        model: the model.
        inputs: what it is called with: a mapping, a sequence, or one tensor.
    """
    try:
        return read_run_with_rates(model, inputs, zeros=True)
    except (NotImplementedError, ValueError, RuntimeError) as error:
        # Some attention runs at a rate of 0 alone.
        if "dropout" not in str(error):
            raise
        return read_run_with_rates(model, inputs, zeros=False)


def read_run_with_rates(model: nn.Module, inputs: Any, *, zeros: bool) -> list[Site]:
    """Run a model whose rates, those at 0 too or not, are told apart, and return its sites."""
    with unchanged(model):
        model.train()
        with told_apart(model, zeros=zeros) as rates, gates_seen(model) as gates:
            run = Recorder(model).record(inputs)
            reader = SiteReader(run, draws_of(run, rates), gates)
            return reader.sites()


class SiteReader(BlockReader):
    """Names the places of a run: those inside its blocks, and what lies before and behind these."""

    def sites(self) -> list[Site]:
        """Return the sites in the order of the run."""
        for stack in self.stacks:
            self.read_stack(stack)
        if self.stacks:
            self.read_heads()
        elif not self.attentions:
            self.read_chain()
        self.read_rest()
        order = {"embedding": -1, "classifier": 1}
        known: dict[str, Site] = {}
        for _, site in sorted(self.found, key=lambda item: (order.get(item[1].kind, 0) == 1, item[0])):
            # What is dropped twice has one place, which both rates belong to.
            known[site.name] = with_rates_of(known.get(site.name, site), site)
        return list(known.values())

    def read_stack(self, stack: BlockSequence) -> None:
        """Name the places of a stack of blocks, and what leads to it."""
        where: dict[str, Any] = {"n_blocks": len(stack.blocks)}
        self.where[id(stack)] = where
        where["causal"] = self.is_causal(stack)
        where["owner"] = self.owner_of(stack.blocks[0])
        where["batch_first"] = self.is_batch_first(stack)
        for block in stack.blocks:
            # Stacks side by side, as predictors of weights are, have an embedding each.
            if block is stack.blocks[0] or not self.run.nodes[self.entered(block)].before & self.stacked:
                for place in self.streams(block) or (0,):
                    self.read_embedding(block, place, where)
        for index, block in enumerate(stack.blocks):
            self.read_block(block, {"block": index, **where})

    def entered(self, block: BlockCalls, place: int = 0) -> int:
        """Return the node of a stream that enters a block."""
        given = self.run.calls[block.calls[0]].inputs if block.calls else ()
        stream = given[place] if given else None
        return block.branches[0].skip if stream is None else stream

    def read_embedding(self, first: BlockCalls, place: int, where: dict[str, Any]) -> None:
        """Name the place where tokens enter a stack by one of the streams of its first block."""
        entered = self.entered(first, place)
        shape = self.run.nodes[entered].shape
        if not self.run.is_activation(entered):
            # Learned latents, which know no tokens yet.
            return
        if self.run.nodes[entered].before & self.stacked:
            tail = self.looked_up(entered, self.stacked)
            if tail is not None:
                self.add("embedding", self.places.at(tail, outermost=True), **where)
            return
        tail = tail_of(self.run, entered, EVERYTHING)
        if (
            self.run.nodes[tail.values[0]].name == "input"
            and self.run.nodes[tail.values[0]].shape[-1:] == shape[-1:]
        ):
            # It is called with embeddings.
            return
        own = [d for d in self.draws if d.module and self.run.depends(entered, d.acts) and not d.attention]
        if own and own[-1].acts not in tail.values:
            tail.values = [own[-1].acts]
        values = [value for value in tail.values[::-1] if self.run.nodes[value].shape[-1:] == shape[-1:]]
        same = [value for value in values if len(self.run.nodes[value].shape) == len(shape)]
        # What is dropped after positions were added is not the same before.
        for draw in self.draws:
            if draw.acts in tail.values and draw.rate is not None:
                given = self.run.activations(self.run.nodes[draw.acts])
                same = [value for value in same if value >= min(given, default=0)]
        found = self.places.at(Tail(values=same), outermost=True)
        if found is None and len(first.calls) > 1:
            # Before a block that runs again it would act again.
            found = self.places.at(tail, outermost=True)
        call = self.run.calls[first.calls[0]] if first.calls else None
        hooked = call is not None and place == 0 and call.shapes[0]
        if found is None and call is not None and hooked and not isinstance(call.module, nn.Sequential):
            found = self.places.before(call, tail, once=len(first.calls))
        self.add("embedding", found, **where)

    def looked_up(self, entered: int, sums: int) -> Tail | None:
        """Return the embedding among what enters a stack that has passed no other stack."""
        for index in bits(self.run.nodes[entered].before & ~sums):
            node = self.run.nodes[index]
            if node.name == "embedding" and self.run.is_activation(index) and not node.before & sums:
                return Tail(values=[index])
        return None

    def where_of(self, node: int) -> dict[str, Any]:
        """Return what a place shares with the last stack that it lies behind; with the first before all."""
        before = self.run.nodes[node].before
        behind = [
            stack
            for stack in self.stacks
            if any(before >> branch.add & 1 for block in stack.blocks for branch in block.branches)
        ]
        stacks = behind[-1:] or self.stacks[:1]
        return self.where[id(stacks[0])] if stacks else {"causal": False}

    def read_heads(self) -> None:
        """Name what the output layers are given."""
        for output in self.run.outputs:
            if output is None or not self.run.is_activation(output):
                continue
            tail = tail_of(self.run, output, EVERYTHING)
            stop = self.run.nodes[tail.values[0]]
            nonlinear = self.run.nodes[output].name in NONLINEAR
            if not tail.linear or nonlinear or not stop.before & self.stacked or self.in_block(stop.index):
                continue
            self.read_head(stop.index)

    def read_head(self, linear: int) -> None:
        """Name what one output layer is given."""
        node = self.run.nodes[linear]
        call = self.run.calls[node.call]
        given = tail_of(self.run, self.run.activations(node)[0], EVERYTHING)
        given.values = [value for value in given.values if not self.in_block(value)] or given.values[-1:]
        place = self.places.before(call, given) if is_product(call) else None
        if place is None:
            backwards = Tail(values=given.values[::-1])
            place = self.places.at(backwards)
        self.add("classifier", place, **self.where_of(linear))

    def read_chain(self) -> None:
        """Name the places of a model without blocks, as an MLP is: what each linear layer is given."""
        run = self.run
        linears = [n for n in run.nodes if run.is_linear(n) and run.is_activation(n.index)]
        chain = [n for n in linears if "conv" not in n.name and n.call and is_product(run.calls[n.call])]
        first = [
            node
            for node in chain
            if not any(run.depends(node.index, n.index) for n in linears if n is not node)
        ]
        for place, node in enumerate(chain):
            kind: Kind = "input" if node in first else "mlp_hidden"
            if node is chain[-1] and place:
                kind = "classifier"
            if kind == "input" and len(first) > 1:
                continue
            given = tail_of(run, run.activations(node)[0], EVERYTHING)
            where = {"causal": False, "block": max(place - 1, 0), "n_blocks": max(len(chain) - 1, 1)}
            self.add(kind, self.places.before(run.calls[node.call], given), **where)

    def in_block(self, node: int, *, again: bool = False) -> bool:
        """Return whether a node ran inside a block, or inside one that ran again."""
        blocks = (block for stack in self.stacks for block in stack.blocks)
        calls = (number for block in blocks for number in block.calls if not again or len(block.calls) > 1)
        return any(self.run.calls[number].holds(node) for number in calls)

    def read_rest(self) -> None:
        """Name the places of what else drops: before the blocks, behind them, or where no layer can act."""
        for attention in self.attentions:
            drops = self.places.drops(attention)
            if not any(o is not None and self.run.depends(o, attention.product) for o in self.run.outputs):
                # Nothing is made of it, as of a pooling that the head has no use for.
                self.places.taken |= {draw.node for draw in drops}
            elif drops and not any(attention in branch.attentions for branch in self.branches):
                where = self.where_of(attention.product)
                self.add("attention_weights", self.places.weights(attention), **where)
        known = {(d.path, d.module, d.rate, d.name) for d in self.draws if d.node in self.places.taken}
        rest: list[tuple[Draw, Kind]] = []
        for draw in self.draws:
            alike = (draw.path, draw.module, draw.rate, draw.name) in known
            # A block that runs again draws at the same places.
            if draw.node in self.places.taken or (alike and self.in_block(draw.node, again=True)):
                continue
            if draw.rate is not None and "layer" in draw.rate.rpartition(".")[2]:
                self.silence_blocks(draw.rate, draw.path)
                continue
            rest.append((draw, self.kind_outside(draw)))
        self.places.kinds |= {draw.acts: kind for draw, kind in rest if not self.in_block(draw.node)}
        for draw, kind in rest:
            if draw.name in RECURRENT and self.stacks and not self.is_behind(draw):
                # What else reads tokens has an embedding of its own.
                given = self.run.activations(self.run.nodes[draw.node])[0]
                place = self.places.at(tail_of(self.run, given, EVERYTHING), outermost=True)
                self.add("embedding", place, **self.where_of(draw.acts))
            if draw.node not in self.places.taken:
                self.add_own(draw, kind, **self.where_of(draw.acts))

    def kind_outside(self, draw: Draw) -> Kind:
        """Return what is dropped where no block has a place for it."""
        around = self.lone_around(draw)
        if around is not None and not self.in_block(draw.acts):
            return self.kind_in(around, draw)
        if draw.name in RECURRENT:
            return "mlp_hidden"
        if not self.stacks and self.attentions:
            return self.kind_without_blocks(draw)
        return "classifier" if self.is_behind(draw) else "embedding"

    def is_behind(self, draw: Draw) -> bool:
        """Return whether what is dropped comes out of blocks, and nothing in a block is made of it."""
        if not self.stacks:
            return True
        # Positions are dropped before the blocks, and first used inside one.
        used_inside = self.in_block(draw.acts) and not self.in_block(draw.node)
        if used_inside or not self.run.nodes[draw.acts].before & self.stacked:
            return False
        return not any(self.run.depends(add, draw.acts) for add in bits(self.stacked))

    def lone_around(self, draw: Draw) -> Branch | None:
        """Return the branch around what is dropped that belongs to no module; None where there is none."""
        blocks = (block for stack in self.stacks for block in stack.blocks if block.path is None)
        loose = [branch for block in blocks for branch in block.branches]
        lone = (b for b in self.branches if b in loose or not (1 << b.add | b.inside) & self.stacked)
        return next((b for b in lone if self.stacks and b.inside >> draw.acts & 1), None)

    def kind_without_blocks(self, draw: Draw) -> Kind:
        """Return what is dropped in a model that attends and whose stream is no sum, as behind gates."""
        run = self.run
        if not any(run.depends(draw.acts, attention.product) for attention in self.attentions):
            return "embedding"
        after = [node for node in run.nodes[draw.acts + 1 :] if node.before >> draw.acts & 1]
        attended = any(run.depends(attention.product, draw.acts) for attention in self.attentions)
        return "mlp_hidden" if attended or sum(run.is_linear(n) for n in after) > 1 else "classifier"

    def silence_blocks(self, rate: str, owner: str) -> None:
        """Let the blocks below the module that draws know of the rate of leaving whole blocks out.

        The rate may stand in a config that many modules share.
        """
        for place, (node, site) in enumerate(self.found):
            if site.kind == "block" and (not owner or site.path.startswith(f"{owner}.")):
                self.found[place] = node, silencing(site, rate, site.rate, *site.silences)

    def is_causal(self, stack: BlockSequence) -> bool:
        """Return whether in a stack a token sees only what came before it; True where that cannot be seen."""
        for block in stack.blocks:
            for branch in block.branches:
                if branch.attentions:
                    seen = sees_later(self.run, branch.skip, branch.end)
                    if seen is None:
                        # On meta there are no numbers, and an attention of transformers tells.
                        seen = self.told_later(branch)
                    if seen is not None:
                        return not seen
        # Where nothing attends, tokens are mixed by other means; those of an image are in no order.
        others = [branch for block in stack.blocks[:2] for branch in block.branches]
        if any(len(self.run.nodes[branch.skip].shape) > 3 for branch in others):
            return False
        return True not in [sees_later(self.run, branch.skip, branch.end) for branch in others]

    def told_later(self, branch: Branch) -> bool | None:
        """Return whether a module says that its attention sees later tokens; None where none does."""
        number = self.run.nodes[branch.attentions[0].product].call
        told = (
            getattr(self.run.calls[n].module, "is_causal", None) for n in self.run.calls[number].around[::-1]
        )
        causal = next((value for value in told if isinstance(value, bool)), None)
        return None if causal is None else not causal

    def owner_of(self, block: BlockCalls) -> str | None:
        """Return the innermost module around a block that is called with tokens."""
        if not hasattr(self.run.model, "base_model_prefix"):
            return None
        number = block.calls[0] if block.calls else self.run.nodes[block.branches[0].add].call
        for index in reversed(self.run.calls[number].around):
            call = self.run.calls[index]
            names = forward_names(call.module)
            if "inputs_embeds" in names or "input_ids" in names:
                return call.path
        return None

    def is_batch_first(self, stack: BlockSequence) -> bool:
        """Return whether the first dimension of what enters a stack counts the samples."""
        module = self.run.model.get_submodule(stack.blocks[0].path or "")
        return not isinstance(module, TORCH_LAYERS) or bool(module.self_attn.batch_first)


def with_rates_of(site: Site, other: Site) -> Site:
    """Return a site at which the model's own rates at another one of the same name are silent, too."""
    if site.access == "rate" or other.access == "rate":
        return site
    return silencing(site, site.rate, *site.silences, other.rate, *other.silences)


def silencing(site: Site, *rates: str | None) -> Site:
    """Return a site at which some rates of the model's own are silent, the first of them set."""
    known = list(dict.fromkeys(rate for rate in rates if rate))
    return replace(site, rate=known[0] if known else None, silences=tuple(known[1:]))


def forward_names(module: nn.Module) -> list[str]:
    """Return the names of the arguments of a module's forward."""
    return list(inspect.signature(module.forward).parameters)
