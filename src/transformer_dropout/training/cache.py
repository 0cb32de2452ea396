"""What a decoder remembers of the tokens it has read: keys and values, learned masks' own included.

Each attention of the model, of its LearnedDropout layers and of their shared embeddings is handed a memory
by a hook that is there during one forward only, so that nobody else's forward meets it.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.precomputed import MaskEmbedding
from .decoder import Attention, Decoder
from .native_decoding import NativeReader, reads_natively


class Memory:
    """The keys and values of one attention, in memory that is taken once.

    Args:
        cache: says how many tokens came before, and how many there may be.
    """

    def __init__(self, cache: "Cache") -> None:
        self.cache = cache
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Remember new keys and values; return all so far."""
        if self.keys is None or self.values is None:
            batch, heads, _, size = key.shape
            self.keys = key.new_empty(batch, heads, self.cache.capacity, size)
            self.values = torch.empty_like(self.keys)
        start = self.cache.length
        end = start + key.shape[2]
        self.keys[:, :, start:end] = key
        self.values[:, :, start:end] = value
        return self.keys[:, :, :end], self.values[:, :, :end]

    def so_far(self) -> tuple[Tensor, Tensor]:
        """Return the keys and values so far."""
        assert self.keys is not None and self.values is not None
        return self.keys[:, :, : self.cache.length], self.values[:, :, : self.cache.length]


class Cache:
    """A decoder that reads sequences piece by piece, aligned at their ends.

    Args:
        model: in evaluation mode.
        remember: whether keys and values are kept for the next piece.

    Attributes:
        length: columns read so far, padding included; set it back to forget the last ones.
        capacity: columns that there may be: the model's context.
    """

    def __init__(self, model: Decoder, *, remember: bool = True) -> None:
        self.model, self.length, self.capacity = model, 0, model.config.context
        self.memories = {module: Memory(self) if remember else None for module in attending_modules(model)}
        self.real: Tensor | None = None
        self._output_weight: Tensor | None = None
        self._native: NativeReader | None = None
        self._undecided = True

    def read(self, tokens: Tensor, real: Tensor | None = None) -> Tensor:
        """Return the logits after the last of some columns that follow those read so far.

        Args:
            tokens: the new columns.
            real: false where a new column is padding, which stands left of a row's tokens; None for none.

        Shape:
            tokens, real: (batch, columns); result: (batch, vocabulary).
        """
        end = self.length + tokens.shape[1]
        if self.length == 0:
            self.real, self._native, self._undecided = real, None, True
        elif (native := self._native_reader(tokens)) is not None:
            self.length = end
            return native.read(tokens[0].tolist(), end - tokens.shape[1])
        elif self.real is not None:
            self.real = F.pad(self.real[:, : self.length], (0, tokens.shape[1]), value=True)
        with self._handed_over(self._positions(end)):
            features = self.model.features(tokens)[:, -1]
        if self.length == 0:
            logits = F.linear(features, self.model.embedding.token.weight)
        else:
            logits = features @ self._weight_of_output()
        if any(self.memories.values()):
            self.length = end
        return logits

    def _native_reader(self, tokens: Tensor) -> NativeReader | None:
        """Return what reads the rest natively; it takes over at the first token that comes alone."""
        if self._undecided and tokens.numel() == 1:
            self._undecided = False
            if self.real is None and reads_natively(self.model):
                remembered = {module: memory.so_far() for module, memory in self.memories.items() if memory}
                self._native = NativeReader(self.model, remembered)
        return self._native

    def _positions(self, end: int) -> Tensor:
        """Return the position of each new column, counted from the first real token of its row."""
        if self.real is None:
            return torch.arange(self.length, end, device=self.model.embedding.token.weight.device)[None]
        return (self.real.cumsum(1) - 1).clamp_min(0)[:, self.length :]

    def _weight_of_output(self) -> Tensor:
        """Return the output layer's weight as (width, vocabulary).

        One row times a matrix of that layout takes a processor a third of the time.
        """
        if self._output_weight is None:
            weight = self.model.embedding.token.weight.t()
            self._output_weight = weight.contiguous() if weight.device.type == "cpu" else weight
        return self._output_weight

    @contextmanager
    def _handed_over(self, positions: Tensor) -> Iterator[None]:
        """Give every attention its memory, and the embedding its positions, during one forward."""
        words = [(self.model.embedding, {"positions": positions})]
        words += [(m, {"padding_mask": self.real, "past": memory}) for m, memory in self.memories.items()]
        with ExitStack() as hooks:
            for module, keywords in words:
                hook = module.register_forward_pre_hook(partial(add_keywords, keywords), with_kwargs=True)
                hooks.callback(hook.remove)
            yield


def add_keywords(added: dict, module: nn.Module, arguments: tuple, keywords: dict) -> tuple[tuple, dict]:
    """Forward pre-hook: call the module with some more keywords."""
    return arguments, keywords | added


def attending_modules(model: nn.Module) -> list[nn.Module]:
    """Return the modules that look at other tokens: the model's attentions and those of learned masks."""
    return [
        module
        for module in model.modules()
        if isinstance(module, Attention | MaskEmbedding) or getattr(module, "looks_at_tokens", False)
    ]
