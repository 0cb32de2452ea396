"""The sites of a model that no table knows, read off its structure.

Rests on customs: modules are registered in the order in which they are called, attention is called attention.
Where a model keeps to neither, hand its sites over: ``td.regularize_(model, recipe, sites=[...])``.

Whether a token sees the ones after it is read off an attention of Hugging Face's; elsewhere it cannot be, and
sites are causal, which leaks nothing, but for those of images: in the rule for an encoder write
``causal=False``. Padding and caches are known in models of Hugging Face only.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

from torch import nn

from ._block import after, attends, attention_paths, calls_interface, dropouts, linears, read_block, widths
from ._hugging_face import base_path, is_hugging_face, joined, site_at
from ._places import Place, before, child, output
from ._site import Site

TORCH_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


def generic_sites(model: nn.Module) -> list[Site]:
    """Return the sites of any model: of its blocks where it has some, else of its linear layers."""
    stacks = block_lists(model)
    if not stacks:
        return chain_sites(model) if is_chain(model) else []
    causal = not any(isinstance(module, nn.Conv2d) for _, module in outside(model, stacks))
    sites = list(embedding_sites(model, stacks, causal))
    for blocks in stacks:
        for index, path in enumerate(blocks):
            sites.extend(block_sites(model, path, index, len(blocks), causal))
    return sites + list(head_sites(model, stacks, causal))


def block_lists(model: nn.Module) -> list[list[str]]:
    """Return the paths of the blocks with attention in them, list by list; a lone block is a list of one."""
    found: list[list[str]] = []
    for path, module in model.named_modules():
        if any(inside(path, [block]) for blocks in found for block in blocks):
            continue
        if isinstance(module, nn.ModuleList | nn.Sequential) and is_stack(module):
            found.append([joined(path, name) for name, _ in module.named_children()])
        elif isinstance(module, TORCH_LAYERS):
            found.append([path])
    return found or siblings(model)


def siblings(model: nn.Module) -> list[list[str]]:
    """Return the blocks that are no list but several attributes of one class, with attention in each."""
    for path, module in model.named_modules():
        alike: dict[type, list[str]] = {}
        for name, part in module.named_children():
            if attention_paths(part) and not isinstance(part, nn.ModuleList):
                alike.setdefault(type(part), []).append(joined(path, name))
        found = [paths for paths in alike.values() if len(paths) > 1]
        if found:
            return found
    return []


def is_stack(module: nn.Module) -> bool:
    """Return whether a module is a list of blocks, each with attention in it."""
    return len(list(module.children())) > 0 and all(attention_paths(block) for block in module.children())


def block_sites(model: nn.Module, path: str, index: int, n_blocks: int, causal: bool) -> Iterator[Site]:
    """Yield the sites of one block."""
    block = model.get_submodule(path)
    known = dict(widths(block))
    batch_first = not isinstance(block, TORCH_LAYERS) or block.self_attn.batch_first
    where: dict[str, Any] = {"block": index, "n_blocks": n_blocks, "owner": owner_of(model, path)}
    core = next((part for part in block.modules() if calls_interface(part)), None)
    where["causal"] = causal if core is None else getattr(core, "is_causal", causal)
    places = read_block(block)
    # A list is never called, only what is in it.
    if not isinstance(block, nn.ModuleList | nn.ModuleDict):
        places["block"] = (Place(path="", access="block"),)
    for kind, of_kind in places.items():
        for place in of_kind:
            for site in site_at(model, kind, path, place, **where):
                yield replace(site, width=known.get(kind), batch_first=batch_first)


def owner_of(model: nn.Module, block: str) -> str | None:
    """Return the module that is called with the attention mask and the cache of a block's tokens."""
    if not is_hugging_face(model):
        return None
    if getattr(model.config, "is_encoder_decoder", False):
        # The list of blocks lies in its encoder or decoder.
        return block.rpartition(".")[0].rpartition(".")[0]
    return base_path(model)


def inside(path: str, roots: list[str]) -> bool:
    """Return whether a module lies in one of some others, or is one."""
    return any(not root or path == root or path.startswith(f"{root}.") for root in roots)


def outside(model: nn.Module, stacks: list[list[str]]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that lie in no block and hold none."""
    blocks = [block for stack in stacks for block in stack]
    for path, module in model.named_modules():
        if path and not inside(path, blocks) and not any(inside(block, [path]) for block in blocks):
            yield path, module


def embedding_sites(model: nn.Module, stacks: list[list[str]], causal: bool) -> Iterator[Site]:
    """Yield where the embeddings enter each stack of blocks: the dropout there, else the embedding."""
    order = [path for path, _ in model.named_modules()]
    candidates = [path for path, module in outside(model, stacks) if embeds(path, module)]
    taken: set[str] = set()
    for blocks in stacks:
        first = order.index(blocks[0])
        path = nearest(blocks[0], [path for path in candidates if order.index(path) < first])
        if path is None or path in taken:
            continue
        taken.add(path)
        drops = [drop for drop, _ in dropouts(model) if order.index(path) < order.index(drop) < first]
        drops = [drop for drop in drops if not any(inside(drop, others) for others in stacks)]
        # An empty place is taken only where no dropout is.
        filled = [drop for drop in drops if isinstance(model.get_submodule(drop), nn.Dropout)]
        place = child(*(filled or drops)[:1]) or output(path)
        for site in site_at(model, "embedding", "", place[0], causal=causal):
            yield replace(site, width=dict(widths(model.get_submodule(blocks[0])))["block"])


def embeds(path: str, module: nn.Module) -> bool:
    """Return whether a module makes embeddings, as far as its class and its name tell."""
    name = f"{path.rpartition('.')[2]} {type(module).__name__}".lower()
    return isinstance(module, nn.Embedding | nn.Conv2d) or "embed" in name


def nearest(block: str, paths: list[str]) -> str | None:
    """Return the first of some modules in the innermost module around a block that holds any."""
    around = block
    while around:
        around = around.rpartition(".")[0]
        found = [path for path in paths if inside(path, [around])]
        if found:
            return found[0]
    return None


def head_sites(model: nn.Module, stacks: list[list[str]], causal: bool) -> Iterator[Site]:
    """Yield the place before the last linear layer behind the blocks: the dropout there, else its input."""
    order = [path for path, _ in model.named_modules()]
    last = order.index(stacks[-1][-1])
    behind = [(path, module) for path, module in outside(model, stacks) if order.index(path) > last]
    heads = [(path, module) for path, module in behind if isinstance(module, nn.Linear)]
    if not heads:
        return
    path, head = heads[-1]
    drops = [drop for drop, _ in dropouts(model) if last < order.index(drop) < order.index(path)]
    drops = [drop for drop in drops if drop in dict(behind)]
    place = child(*drops[-1:]) or before(path)
    for site in site_at(model, "classifier", "", place[0], causal=causal):
        yield replace(site, width=head.in_features)


def is_chain(model: nn.Module) -> bool:
    """Return whether each linear layer of a model takes what the one before it returns, without attention."""
    chain = [part for _, part in linears(model)]
    fits = all(first.out_features == second.in_features for first, second in pairwise(chain))
    return fits and not attention_paths(model) and not any(attends(module) for module in model.modules())


def has_own_weights(module: nn.Module) -> bool:
    """Return whether a module has parameters outside its parts."""
    return next(module.parameters(recurse=False), None) is not None


def chain_sites(model: nn.Module) -> list[Site]:
    """Return the sites of a chain of linear layers: their input, and the hidden units between them."""
    order = [path for path, _ in model.named_modules()]
    features = dict(linears(model))
    chain = list(features)
    drops = [path for path, _ in dropouts(model)]
    sites: list[Site] = []
    if chain and next(path for path, part in model.named_modules() if has_own_weights(part)) == chain[0]:
        earlier = [path for path in drops if order.index(path) < order.index(chain[0])]
        place = (child(*earlier[-1:]) or before(chain[0]))[0]
        sites += [
            replace(site, width=features[chain[0]].in_features)
            for site in site_at(model, "input", "", place, causal=False)
        ]
    for index, (first, second) in enumerate(pairwise(chain)):
        place = after(first, second, drops, order)[0]
        if place.access != "module":
            place = before(second)[0]
        kind = "classifier" if second == chain[-1] else "mlp_hidden"
        where = {"causal": False, "block": index, "n_blocks": max(0, len(chain) - 1)}
        width = features[second].in_features
        sites.extend(replace(site, width=width) for site in site_at(model, kind, "", place, **where))
    return sites
