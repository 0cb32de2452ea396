"""What layers that look at other tokens must know: which tokens are padding, and what came before.

A hook on the stack that owns the blocks reads the attention mask and the cache from its arguments. The
layer's keys and values go into the model's own cache, behind those of the model's layers, so that beam search
reorders them and a crop crops them.
"""

import inspect
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import InputError


@dataclass
class Sequence:
    """What the running forward was given.

    Attributes:
        padding_mask: true at real tokens, past ones included; None when there is no padding.
        cache: the model's key-value cache; None without one, and between forwards.
        past: how many tokens the cache held before this forward.
        shape: batch and tokens of this forward; None while nothing says.
    """

    padding_mask: Tensor | None = None
    cache: Any = None
    past: int = 0
    shape: tuple[int, int] | None = None

    def __deepcopy__(self, memo: dict) -> "Sequence":
        # A copied model has run no forward; tensors inside a graph could not even be copied.
        copy = memo[id(self)] = Sequence()
        return copy

    def unflattened(self, x: Tensor) -> Tensor:
        """Return tokens as (batch, tokens, width) where a model has flattened them, as OPT's MLP does.

        Raises:
            InputError: when they are not all the tokens of the sequences, as inside an expert, or before an
                output layer that only sees the last token.
        """
        if x.ndim == 3 and (self.shape is None or x.shape[:2] == self.shape):
            return x
        if x.ndim != 2 or self.shape is None or x.shape[0] != self.shape[0] * self.shape[1]:
            raise InputError(
                f"A layer that looks at other tokens sees tensors of shape {tuple(x.shape)} here, which are "
                "not the tokens of whole sequences; place it at attention_output or mlp_output."
            )
        return x.view(*self.shape, x.shape[-1])


class CacheSlot:
    """The place of one layer in a model's key-value cache.

    Args:
        sequence: says which cache this is: a ``DynamicCache``, or an encoder-decoder's.
        index: which of the layers that remember this is, counted from 0.
        n_layers: how many layers the model itself keeps in the cache.
    """

    def __init__(self, sequence: Sequence, index: int, n_layers: int) -> None:
        self.cache = getattr(sequence.cache, "self_attention_cache", sequence.cache)
        self.past = sequence.past
        self.index = n_layers + index

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Remember new keys and values; return all so far.

        Raises:
            InputError: for a cache of fixed size, or one that was filled without this layer.
        """
        from transformers.cache_utils import DynamicCache, DynamicLayer

        if not isinstance(self.cache, DynamicCache):
            raise InputError(
                "A layer that looks at other tokens keeps its keys in a DynamicCache, not in a "
                f"{type(self.cache).__name__}; "
                "call generate without cache_implementation, or with use_cache=False."
            )
        while len(self.cache.layers) <= self.index:
            self.cache.layers.append(DynamicLayer())
        keys, values = self.cache.update(key, value, self.index)
        if keys.shape[-2] != self.past + key.shape[-2]:
            raise InputError(
                "The cache was filled by a forward that did not pass it through this layer; hand an "
                "empty DynamicCache to the first forward as past_key_values, or use use_cache=False."
            )
        return keys, values


def follow_sequence(
    model: nn.Module, owner: nn.Module, sequence: Sequence
) -> tuple[RemovableHandle, RemovableHandle]:
    """Keep a ``Sequence`` up to date with what a stack of blocks in a model is called with."""
    # The head may hold a layer too, so the cache is let go when the whole model has run.
    return (
        owner.register_forward_pre_hook(partial(note_arguments, sequence), with_kwargs=True),
        model.register_forward_hook(partial(let_go_of_cache, sequence), always_call=True),
    )


# Functions with their state as an argument, not closures, so that a deep copy of the model has its own.
def note_arguments(sequence: Sequence, module: nn.Module, arguments: tuple, keywords: dict) -> None:
    """Forward pre-hook: note the attention mask and the cache.

    Raises:
        InputError: for a mask that does not say which tokens are padding.
    """
    given = inspect.signature(module.forward).bind_partial(*arguments, **keywords).arguments
    given = given | given.get("kwargs", {})
    mask = given.get("attention_mask")
    if mask is not None and mask.ndim != 2:
        raise InputError(
            "A layer that looks at other tokens needs an attention_mask of shape (batch, tokens), which says "
            f"what is padding; this one has the shape {tuple(mask.shape)}."
        )
    sequence.padding_mask, sequence.cache = mask, given.get("past_key_values")
    sequence.past = 0 if sequence.cache is None else int(sequence.cache.get_seq_length())
    tokens = next(
        (given[name] for name in ("input_ids", "inputs_embeds") if given.get(name) is not None), None
    )
    sequence.shape = None if tokens is None else (tokens.shape[0], tokens.shape[1])


def let_go_of_cache(sequence: Sequence, module: nn.Module, arguments: tuple, output: Any) -> None:
    """Forward hook: forget the cache, which may be large; a recomputation needs the mask only."""
    sequence.cache = None
