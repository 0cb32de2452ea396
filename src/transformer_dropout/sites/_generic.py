"""The sites of a model that no table knows, read off its structure.

Rests on two customs: modules are registered in the order in which they are called, and attention is called
attention. Where a model keeps to neither, hand its sites over: ``td.regularize_(model, recipe, sites=[...])``.
"""

from collections.abc import Iterator

from torch import nn

from ._hugging_face import joined, site_at
from ._places import Place, Places, before, child, output
from ._site import Site
from ._torch_layers import places_of

Named = list[tuple[str, nn.Module]]


def generic_sites(model: nn.Module) -> list[Site]:
    """Return the sites of any model: of its blocks where it has some, else of its linear layers."""
    stacks = [path for path, module in model.named_modules() if is_stack(module)]
    if not stacks:
        return chain_sites(model)
    sites = list(embedding_sites(model, stacks))
    for stack in stacks:
        blocks = model.get_submodule(stack)
        assert isinstance(blocks, nn.ModuleList | nn.Sequential)
        for index, block in enumerate(blocks):
            causal = "decoder" in f"{stack} {type(block).__name__}".lower()
            where = {"block": index, "n_blocks": len(blocks), "causal": causal}
            path = joined(stack, str(index))
            for kind, places in (places_of(block) or read_block(block)).items():
                for place in places:
                    sites.extend(site_at(model, kind, path, place, **where))
            sites.extend(site_at(model, "block", path, Place(path="", access="block"), **where))
    return sites + list(head_sites(model, stacks))


def is_stack(module: nn.Module) -> bool:
    """Say whether a module is a list of equal blocks with attention in them."""
    if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) == 0:
        return False
    return len({type(block) for block in module}) == 1 and attention_path(module[0]) is not None


def attention_path(block: nn.Module) -> str | None:
    """Return the outermost module inside a block that is called attention."""
    for path, module in block.named_modules():
        words = f"{path.rpartition('.')[2]} {type(module).__name__}".lower()
        if path and ("attn" in words or "attention" in words) and linears(module):
            return path
    return None


def linears(module: nn.Module) -> Named:
    """Return the linear layers inside a module, in order."""
    return [(path, part) for path, part in module.named_modules() if isinstance(part, nn.Linear)]


def dropouts(module: nn.Module) -> Named:
    """Return the dropouts and empty places inside a module, in order."""
    return [(path, part) for path, part in module.named_modules() if is_drop(path, part)]


def is_drop(path: str, module: nn.Module) -> bool:
    """Say whether a module is an ``nn.Dropout``, or an ``nn.Identity`` in a dropout's place."""
    if isinstance(module, nn.Identity):
        return "drop" in path.rpartition(".")[2].lower()
    return isinstance(module, nn.Dropout)


def read_block(block: nn.Module) -> Places:
    """Return the places inside a block, from the order of its linear layers and dropouts."""
    order = [path for path, _ in block.named_modules()]
    attention = attention_path(block)
    assert attention is not None
    inside = f"{attention}."
    attention_linears = [path for path, _ in linears(block) if path.startswith(inside)]
    other_linears = [
        path
        for path, _ in linears(block)
        if not path.startswith(inside) and order.index(path) > order.index(attention_linears[-1])
    ]
    drops = [path for path, _ in dropouts(block)]
    last = attention_linears[-1]
    end = other_linears[0] if other_linears else None
    places: Places = {"attention_output": after(last, end, drops, order)}
    weights = [path for path in drops if path.startswith(inside) and order.index(path) < order.index(last)]
    if weights:
        # Some models call it, others only read its rate: setting the rate serves both.
        places["attention_weights"] = (Place(path=weights[-1], access="rate", rate=f"{weights[-1]}.p"),)
    if len(other_linears) > 1:
        between = after(other_linears[-2], other_linears[-1], drops, order)
        hidden = between if between[0].access == "module" else before(other_linears[-1])
        places["mlp_hidden"] = hidden
        places["mlp_output"] = after(other_linears[-1], None, drops, order)
    return places


def after(path: str, end: str | None, drops: list[str], order: list[str]) -> tuple[Place, ...]:
    """Return the dropout between two modules, else the output of the first."""
    start, stop = order.index(path), order.index(end) if end else len(order)
    found = [drop for drop in drops if start < order.index(drop) < stop]
    return child(found[0]) if found else output(path)


def outside(model: nn.Module, stacks: list[str]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that lie in no stack of blocks and hold none."""
    for path, module in model.named_modules():
        holds = any(stack.startswith(f"{path}.") or stack == path for stack in stacks)
        inside = any(path.startswith(f"{stack}.") for stack in stacks)
        if path and not holds and not inside:
            yield path, module


def embedding_sites(model: nn.Module, stacks: list[str]) -> Iterator[Site]:
    """Yield the place where the embeddings enter the first block."""
    for path, module in outside(model, stacks):
        if isinstance(module, nn.Embedding | nn.Conv2d) or "embed" in type(module).__name__.lower():
            inner = dropouts(module)
            place = child(joined(path, inner[-1][0])) if inner else output(path)
            yield from site_at(model, "embedding", "", place[0], causal=False)
            return


def head_sites(model: nn.Module, stacks: list[str]) -> Iterator[Site]:
    """Yield the place before the last linear layer outside the blocks."""
    heads = [path for path, module in outside(model, stacks) if isinstance(module, nn.Linear)]
    if heads:
        yield from site_at(model, "classifier", "", before(heads[-1])[0], causal=False)


def chain_sites(model: nn.Module) -> list[Site]:
    """Return the sites of a chain of linear layers: the hidden units between them."""
    order = [path for path, _ in model.named_modules()]
    chain = [path for path, _ in linears(model)]
    drops = [path for path, _ in dropouts(model)]
    sites: list[Site] = []
    for index, (first, second) in enumerate(zip(chain, chain[1:], strict=False)):
        place = after(first, second, drops, order)[0]
        if place.access != "module":
            place = before(second)[0]
        kind = "classifier" if second == chain[-1] else "mlp_hidden"
        sites.extend(
            site_at(model, kind, "", place, causal=False, block=index, n_blocks=max(0, len(chain) - 1))
        )
    return sites
