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

from .decoder import Attention, Decoder
from .decoder_parts import has_known_parts_only
from .memory import Memory
from .native_decoding import NativeReader, reads_natively
from .plain_decoding import PlainReader


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
        self.model, self.length, self.capacity, self.remember = model, 0, model.config.context, remember
        self.memories = {module: Memory(self) for module in attending_modules(model)}
        self.real: Tensor | None = None
        self.reader: NativeReader | PlainReader | None = None
        self._chosen = False
        self._output_weight: Tensor | None = None

    def read(self, tokens: Tensor, real: Tensor | None = None) -> Tensor:
        """Return the logits after the last of some columns that follow those read so far.

        Args:
            tokens: the new columns.
            real: false where a new column is padding, which stands left of a row's tokens; None for none.

        Shape:
            tokens, real: (batch, columns); result: (batch, vocabulary).
        """
        past, columns = self.length, tokens.shape[1]
        if past == 0:
            self.real, self.reader, self._chosen = real, None, False
        elif self.real is not None:
            self.real = F.pad(self.real[:, :past], (0, columns), value=True)
        if past and columns == 1 and not self._chosen:
            self.reader, self._chosen = self._reader_of_single_tokens(len(tokens)), True
        if isinstance(self.reader, NativeReader):
            logits = self.reader.read(tokens[0].tolist(), past)
        elif self.reader is not None and columns == 1:
            positions = self._positions(past + 1)[:, 0]
            logits = self.reader.features(tokens[:, 0], positions, self.real) @ self._weight_of_output()
        else:
            with self._handed_over(self._positions(past + columns)):
                features = self.model.features(tokens)[:, -1]
            logits = F.linear(features, self.model.embedding.token.weight)
        if self.remember:
            self.length = past + columns
        return logits

    def _reader_of_single_tokens(self, rows: int) -> NativeReader | PlainReader | None:
        """Return the fastest that can read on from here; None where the model's modules have to run."""
        if not has_known_parts_only(self.model):
            return None
        if self.real is None and rows == 1 and reads_natively(self.model):
            return NativeReader(self.model, self.memories, self.length)
        return PlainReader(self.model, self.memories)

    def _positions(self, end: int) -> Tensor:
        """Return the position of each new column, counted from the first real token of its row.

        Shape:
            result: (batch, columns), or (1, columns) where there is no padding.
        """
        if self.real is None:
            return torch.arange(self.length, end, device=self.model.embedding.token.weight.device)[None]
        return (self.real.cumsum(1) - 1).clamp_min(0)[:, self.length :]

    def _weight_of_output(self) -> Tensor:
        """Return the output layer's weight as (width, vocabulary).

        A row times a matrix of that layout takes a processor a third of the time.
        """
        if self._output_weight is None:
            weight = self.model.embedding.token.weight.t()
            self._output_weight = weight.contiguous() if weight.device.type == "cpu" else weight
        return self._output_weight

    @contextmanager
    def _handed_over(self, positions: Tensor) -> Iterator[None]:
        """Give every attention its memory, and the embedding its positions, during one forward."""
        words: list[tuple[nn.Module, dict]] = [(self.model.embedding, {"positions": positions})]
        for attention, memory in self.memories.items():
            words.append((attention, {"padding_mask": self.real, "past": memory if self.remember else None}))
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
        if isinstance(module, Attention) or getattr(module, "looks_at_tokens", False)
    ]
