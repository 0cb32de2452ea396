"""The places inside one block of a model that no table knows, read off its modules."""

import dis
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from ._places import Place, Places, before, child, output
from ._torch_layers import inner_rate, places_of

Named = list[tuple[str, nn.Module]]

ATTENTION = re.compile(r"attn|attention")
# How dropouts of attention weights are named, and those of other things inside an attention.
OF_WEIGHTS = re.compile(r"att(n|ention)?_?(probs?_?|weights?_?)?drop")
OF_OTHERS = re.compile(r"resid|proj|out_|embed|pos|path")
PRODUCTS = {"matmul", "bmm", "baddbmm", "einsum"}


def read_block(block: nn.Module) -> Places:
    """Return the places inside a block, from the names and the order of its modules."""
    known = places_of(block)
    if known is not None:
        return known
    order = [path for path, _ in block.named_modules()]
    shared = shared_dropout(block)
    drops = [path for path, _ in dropouts(block) if path != shared]
    attentions = attention_paths(block)
    places: Places = {
        "attention_weights": sum((weights_places(block, path, drops) for path in attentions), ()),
        "attention_output": sum((output_places(block, path, drops, order) for path in attentions), ()),
    }
    end = order.index(last_linear(block, attentions[-1]))
    inner = mlp_linears(block, attentions, end, order)
    if inner is not None:
        first, last = inner
        between = after(first, last, drops, order)
        places["mlp_hidden"] = between if between[0].access == "module" else before(last)
        places["mlp_output"] = after(last, None, drops, order)
    if shared is not None:
        for kind in ("attention_output", "mlp_output"):
            places[kind] = tuple(with_rate(place, f"{shared}.p") for place in places.get(kind, ()))
    return {kind: found for kind, found in places.items() if found}


def with_rate(place: Place, rate: str) -> Place:
    """Return a hooked place with the rate that is silenced while a layer acts there."""
    return replace(place, rate=rate) if place.access == "output" else place


def shared_dropout(block: nn.Module) -> str | None:
    """Return a dropout that a block calls behind its attention and again behind its MLP."""
    forward = type(block).forward
    names = [name for name, part in block.named_children() if isinstance(part, nn.Dropout)]
    return next((name for name in names if loads_of(forward, name) > 1), None)


def loads_of(function: Any, name: str) -> int:
    """Return how many times a function's code looks an attribute up."""
    function = getattr(function, "__wrapped__", function)
    return sum(step.argval == name for step in dis.get_instructions(function) if step.opname != "STORE_ATTR")


def attention_paths(block: nn.Module) -> list[str]:
    """Return the outermost modules inside a block that are called attention, or whose code is one's."""
    found: list[str] = []
    for path, module in block.named_modules():
        name = f"{path.rpartition('.')[2]} {type(module).__name__}".lower()
        if not path or not linears(module) or not (ATTENTION.search(name) or attends(module)):
            continue
        around = path.rpartition(".")[0]
        # Heads in a list are one attention, with the projection behind them.
        if around and isinstance(block.get_submodule(around), nn.ModuleList):
            path = around.rpartition(".")[0] or path
        if not any(path == outer or path.startswith(f"{outer}.") for outer in found):
            found.append(path)
    return found


def attends(module: nn.Module) -> bool:
    """Return whether a module's own code mixes tokens: attention, or a softmax and a product of matrices."""
    try:
        steps = list(dis.get_instructions(type(module).forward))
    except TypeError:
        return False
    names = {step.argval for step in steps if isinstance(step.argval, str)}
    if "scaled_dot_product_attention" in names:
        return True
    softmax = "softmax" in names or any(isinstance(part, nn.Softmax) for part in module.children())
    return softmax and ("@" in {step.argrepr for step in steps} or not PRODUCTS.isdisjoint(names))


def linears(module: nn.Module) -> list[tuple[str, nn.Linear]]:
    """Return the linear layers inside a module, in order."""
    return [(path, part) for path, part in module.named_modules() if isinstance(part, nn.Linear)]


def dropouts(module: nn.Module) -> Named:
    """Return the dropouts and empty places inside a module, in order."""
    return [(path, part) for path, part in module.named_modules() if is_drop(path, part)]


def is_drop(path: str, module: nn.Module) -> bool:
    """Return whether a module is an ``nn.Dropout``, or an ``nn.Identity`` in a dropout's place."""
    name = path.rpartition(".")[2].lower()
    if isinstance(module, nn.Identity):
        return "drop" in name and "path" not in name
    return isinstance(module, nn.Dropout)


def last_linear(block: nn.Module, attention: str) -> str:
    """Return the path of the last linear layer of an attention: its output projection."""
    return f"{attention}.{linears(block.get_submodule(attention))[-1][0]}".rstrip(".")


def weights_places(block: nn.Module, attention: str, drops: list[str]) -> tuple[Place, ...]:
    """Return where an attention drops its weights.

    Some models call the dropout, others only read its rate, or that of a number: setting rates serves all.
    """
    module = block.get_submodule(attention)
    core = hugging_face_core(module)
    if core is not None:
        path = f"{attention}.{core}".rstrip(".")
        held = [name for name, value in vars(module.get_submodule(core)).items() if is_number(name, value)]
        return (Place(path=path, access="attention", rate=f"{path}.{held[0]}" if len(held) == 1 else None),)
    if isinstance(module, nn.MultiheadAttention):
        return inner_rate(attention)
    named = [path for path in drops if path.startswith(f"{attention}.") and is_of_weights(path)]
    order = [path for path, _ in block.named_modules()]
    last = order.index(last_linear(block, attention))
    # One of another name, before the output projection.
    named = named or [
        path
        for path in drops
        if path.startswith(f"{attention}.")
        and order.index(path) < last
        and isinstance(block.get_submodule(path), nn.Dropout)
        and not OF_OTHERS.search(path.rpartition(".")[2].lower())
    ]
    numbers = [name for name, value in vars(module).items() if is_number(name, value)]
    return tuple(Place(path=path, access="rate", rate=f"{path}.p") for path in named) + tuple(
        Place(path=attention, access="rate", rate=f"{attention}.{name}")
        for name in numbers
        if is_of_weights(name) or name in ("dropout", "dropout_p")
    )


def is_number(name: str, value: Any) -> bool:
    """Return whether an attribute is a rate that code may read."""
    return "drop" in name and type(value) in (int, float)


def is_of_weights(path: str) -> bool:
    """Return whether a dropout is named after attention weights."""
    return OF_WEIGHTS.search(path.rpartition(".")[2].lower()) is not None


def hugging_face_core(attention: nn.Module) -> str | None:
    """Return the module inside an attention that calls Hugging Face's attention interface."""
    return next((path for path, module in attention.named_modules() if calls_interface(module)), None)


def calls_interface(module: nn.Module) -> bool:
    """Return whether a module calls Hugging Face's attention interface."""
    forward: Any = type(module).forward
    # Behind a decorator the names are those of the function that it wraps.
    code = getattr(getattr(forward, "__wrapped__", forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names and hasattr(module, "config")


def output_places(block: nn.Module, attention: str, drops: list[str], order: list[str]) -> tuple[Place, ...]:
    """Return where an attention's result can be dropped: its own dropout there, else what it returns."""
    last = last_linear(block, attention)
    behind = [path for path in drops if not (path.startswith(f"{attention}.") and is_of_weights(path))]
    start = order.index(last)
    end = next((path for path, _ in linears(block) if order.index(path) > start), None)
    if isinstance(block.get_submodule(attention), nn.MultiheadAttention):
        # Its projection is never called, only its weight read.
        place = after(last, end, behind, order)
        return place if place[0].access == "module" else output(attention)
    return after(last, end, behind, order)


def mlp_linears(
    block: nn.Module, attentions: list[str], end: int, order: list[str]
) -> tuple[str, str] | None:
    """Return the linear layer before the last of an MLP, and the last; None where experts share the work.

    The last is the one that returns to the block's width, whatever order a gate is written in.
    """
    width = linears(block.get_submodule(attentions[-1]))[-1][1].out_features
    found = [
        (path, part)
        for path, part in linears(block)
        if order.index(path) > end and not any(path.startswith(f"{outer}.") for outer in attentions)
    ]
    lists = [path for path, part in block.named_modules() if isinstance(part, nn.ModuleList)]
    if len(found) < 2 or any(path.startswith(f"{outer}.") for outer in lists for path, _ in found):
        return None
    narrowing = [path for path, part in found if part.out_features == width < part.in_features]
    last = narrowing[-1] if narrowing else found[-1][0]
    paths = [path for path, _ in found]
    return (paths[max(paths.index(last) - 1, 0)], last) if last != paths[0] else None


def after(path: str, end: str | None, drops: list[str], order: list[str]) -> tuple[Place, ...]:
    """Return the dropout between two modules, else the output of the first."""
    start, stop = order.index(path), order.index(end) if end else len(order)
    found = [drop for drop in drops if start < order.index(drop) < stop]
    return child(found[0]) if found else output(path)


def widths(block: nn.Module) -> Iterator[tuple[str, int]]:
    """Yield, by kind of place inside a block, the channels of the tensor there."""
    if isinstance(block, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        width = block.self_attn.embed_dim
        # Experts may have taken the place of the two linear layers.
        experts: Any = getattr(block, "mlp", None)
        hidden = block.linear1.out_features if experts is None else experts.expand.shape[1]
    else:
        features = dict(linears(block))
        attentions = attention_paths(block)
        order = [path for path, _ in block.named_modules()]
        last = last_linear(block, attentions[-1])
        width = features[last].out_features
        inner = mlp_linears(block, attentions, order.index(last), order)
        hidden = features[inner[1]].in_features if inner is not None else 0
    yield from dict.fromkeys(("attention_output", "mlp_output", "block"), width).items()
    yield "mlp_hidden", hidden
