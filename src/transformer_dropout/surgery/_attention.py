"""Attention whose weights pass through a layer, in our decoder and behind Hugging Face's interface."""

import sys
from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..kernels.attention import causal_attention

CHILD = "attention_weights_dropout"
# How the attentions that pass through a layer are called in the tables of transformers.
PREFIX = "transformer_dropout_"
REACHED = ("sdpa", "eager")
# What the file of a model calls its table and its own attention; the attribute of a module with its entry.
TABLE, EAGER = "ALL_ATTENTION_FUNCTIONS", "eager_attention_forward"
ROUTE = "attention_route"


def attention_weights(
    layer: Callable[[Tensor], Tensor],
    query: Tensor,
    key: Tensor,
    *,
    scaling: float,
    hidden: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Return ``layer(softmax(scores))``, or ``softmax(layer(scores))`` for a layer that acts on scores.

    Args:
        layer: acts on the weights, or on the scores where it says ``acts_on = "scores"``.
        query, key: with as many key heads as query heads.
        scaling: factor of the scores.
        hidden: true where a query may not look; one that may look nowhere is given nothing, as by torch.
        bias: added to the scores: position biases and masks of minus infinity.
        softcap: ``softcap * tanh(scores / softcap)``, as Gemma 2 has it.
        sinks: one more logit per head, as gpt-oss has it, or per query, (batch, heads, queries, 1), that
            takes weight and gives no value.

    Shape:
        query: (batch, heads, queries, d); key: (batch, heads, keys, d).
        Result: (batch, heads, queries, keys).
    """
    on_scores = getattr(layer, "acts_on", "any") == "scores"
    scores = query @ key.transpose(-2, -1) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias
    if hidden is not None:
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    if on_scores:
        scores = layer(scores)
    if sinks is not None:
        sink = sinks if sinks.ndim == 4 else sinks.reshape(1, -1, 1, 1)
        sink = sink.expand(scores.shape[0], -1, scores.shape[2], 1)
        scores = torch.cat([scores, sink.to(scores.dtype)], dim=-1)
    precision = torch.promote_types(query.dtype, torch.float32)
    weights = scores.softmax(dim=-1, dtype=precision).to(query.dtype)
    if sinks is not None:
        weights = weights[..., :-1]
    if hidden is not None:
        weights = weights.masked_fill(hidden, 0.0)
    return weights if on_scores else layer(weights)


def weigh(
    layer: Callable[[Tensor], Tensor], query: Tensor, key: Tensor, value: Tensor, **others: Any
) -> Tensor:
    """Return ``attention_weights(...) v``, written out so that a layer can act on weights or scores.

    Shape:
        query: (batch, heads, queries, d); key, value: (batch, heads, keys, d); result as the query.
    """
    return attention_weights(layer, query, key, **others) @ value


def scaled_dot_product(
    dropout: Callable[[Tensor], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return what ``F.scaled_dot_product_attention`` does, written out, with a dropout of one's own.

    Args:
        dropout: what acts on the weights.
        query, key, value, attn_mask, is_causal, scale, enable_gqa: as there.

    Shape:
        query: (batch, heads, queries, d); key, value: (batch, heads, keys, d); result as the query.
    """
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    hidden = bias = None
    if is_causal:
        hidden = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).triu(1)
    elif attn_mask is not None and attn_mask.dtype == torch.bool:
        hidden = ~attn_mask
    else:
        bias = attn_mask
    scaling = query.shape[-1] ** -0.5 if scale is None else scale
    return weigh(dropout, query, key, value, scaling=scaling, hidden=hidden, bias=bias)


def future(queries: int, keys: int, device: torch.device) -> Tensor:
    """Return true where a query would see a later key; the last query sits on the last key."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).triu(keys - queries + 1)


def attend_with_layer(module: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention of our decoder whose weights pass through the module's layer."""
    layer = getattr(module, CHILD)
    eager_rate = layer.p if layer.is_plain_dropout and not torch.compiler.is_compiling() else None
    if not layer.training or eager_rate == 0:
        return type(module).attend(module, query, key, value)
    if eager_rate is not None:
        return causal_attention(query, key, value, eager_rate)
    hidden = future(query.shape[-2], key.shape[-2], query.device)
    return weigh(layer, query, key, value, scaling=query.shape[-1] ** -0.5, hidden=hidden)


def interface_with_layer(
    original: Callable[..., tuple[Tensor, Tensor | None]] | None,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention as Hugging Face models call it, with the module's layer where it has one.

    Args:
        original: the model's own function; None for the eager one, which each model file defines for itself.
        module: the attention module that calls.
        query, key, value: as the interface hands them over; keys may have fewer heads.
        attention_mask: None, true where a query may look, or what is added to the scores.
        dropout: what the model itself would drop, used where the module has no layer.
        scaling: factor of the scores; None for one over the root of the head width.
        others: further words of the interface.
    """
    layer = getattr(module, CHILD, None)
    if layer is None or not layer.training:
        function = original or home_of(module, EAGER).eager_attention_forward
        unlayered = dropout if layer is None else 0.0
        return function(
            module, query, key, value, attention_mask, dropout=unlayered, scaling=scaling, **others
        )
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    hidden = bias = None
    if attention_mask is None:
        # Eager attention is told by its mask alone.
        told = others.get("is_causal")
        causal = getattr(module, "is_causal", True) if told is None else told
        if original is not None and causal and query.shape[2] > 1:
            hidden = future(query.shape[2], key.shape[2], query.device)
    elif attention_mask.dtype == torch.bool:
        hidden = ~attention_mask[..., : key.shape[2]]
    else:
        bias = attention_mask[..., : key.shape[2]]
    position_bias = others.get("position_bias")
    if position_bias is not None:
        bias = position_bias if bias is None else bias + position_bias
        if hidden is not None:
            # Beside a bias the models hide by a large number, and a query that sees nothing gets the mean.
            bias, hidden = bias.masked_fill(hidden, torch.finfo(query.dtype).min), None
    weights = attention_weights(
        layer,
        query,
        key,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        hidden=hidden,
        bias=bias,
        softcap=others.get("softcap"),
        sinks=others.get("sinks", others.get("s_aux")),
    )
    # As in the models themselves, only eager attention shows its weights, dropped ones.
    return (weights @ value).transpose(1, 2).contiguous(), weights if original is None else None


class Route:
    """Keeps `interface_with_layer` in a table of attentions until the last module that calls it there ends.

    A copy of the module, deep or pickled, has a route of its own. Modules that nobody has any more are not
    counted, but their garbage collection leaves the table alone: it may run while a model is compiled, whose
    guards hold the table's length.

    Args:
        home: the Python module that holds the table.
        name: of the attention that is called through the layer.
    """

    def __init__(self, home: str, name: str) -> None:
        self.home, self.name = home, name
        table = self.table()
        if PREFIX + name not in table:
            table[PREFIX + name] = partial(interface_with_layer, None if name == "eager" else table[name])
        vars(table[PREFIX + name]).setdefault("routes", WeakSet()).add(self)

    def __reduce__(self) -> tuple[type["Route"], tuple[str, str]]:
        return Route, (self.home, self.name)

    def table(self) -> Any:
        """Return the table of attentions."""
        return sys.modules[self.home].ALL_ATTENTION_FUNCTIONS

    def end(self) -> None:
        """Leave the table of attentions, with the function if no module calls it there any more."""
        routes = vars(self.table()[PREFIX + self.name])["routes"]
        routes.discard(self)
        if not routes:
            del self.table()[PREFIX + self.name]


def home_of(attention: nn.Module, name: str) -> Any:
    """Return the Python module, that of an attention's class or of one that it inherits from, with a name.

    A class of the user's own inherits the rest from the file of the model.

    Raises:
        InputError: when none of them has it.
    """
    for kind in type(attention).__mro__:
        if hasattr(sys.modules[kind.__module__], name):
            return sys.modules[kind.__module__]
    raise InputError(
        f"{type(attention).__name__} comes from no file with {name}, so no layer can reach its weights."
    )


def route_through_layer(attention: nn.Module) -> Callable[[], None]:
    """Make an attention module of a Hugging Face model call ``interface_with_layer``; return the way back.

    The module gets a config of its own, since models may share theirs; the masks stay those of the model.

    Raises:
        InputError: when the attention runs in a kernel that shows no weights.
    """
    shared: Any = getattr(attention, "config", None)
    name = getattr(shared, "_attn_implementation", None)
    if name not in REACHED:
        raise InputError(
            f"The model's attention runs as {name!r}, where no layer can reach its weights; load it with "
            "attn_implementation='sdpa'."
        )
    vars(attention)[ROUTE] = Route(home_of(attention, TABLE).__name__, name)
    own: Any = copy(shared)
    # The empty name leaves configs inside it alone, which are still shared.
    own._attn_implementation = {"": PREFIX + name}
    attention.config = own
    return partial(end_route, attention, shared)


def end_route(attention: Any, shared: Any) -> None:
    """Let an attention module call its own attention again."""
    attention.config = shared
    vars(attention).pop(ROUTE).end()
