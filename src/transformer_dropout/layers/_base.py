"""What every layer shares: what it says of itself, the slot for a penalty, and a rate that may move."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..kernels.torch_internals import inside_backward
from ._place import SiteLike, arguments_for, refuse_place
from ._token_gate import TokenGate


class DropoutLayer(nn.Module):
    """Acts on one tensor; identity in evaluation unless its definition says otherwise.

    A layer with a penalty computes it in every training forward and leaves it in one slot, overwritten
    each time and emptied by ``take_penalty``. A recomputation inside the backward pass computes but does
    not store, since its graph would be kept alive and its gradient never used.

    A new layer says here what others must know of it, and nothing else names it. The promises about its
    forward, ``is_plain_dropout`` and ``silent_in_evaluation``, hold for the class that makes them: a subclass
    with a forward of its own makes none until it says so.

    Attributes:
        acts_on: what its tensor must have: attention scores before the softmax, heads, or tokens.
        looks_at_tokens: whether its forward also takes ``padding_mask`` and ``past``.
        tells_samples_apart: whether the first dimension of its tensor must count the samples.
        computes_mlp: whether its forward also takes ``mlp``, a plain MLP's products, and does its work.
        shared_source: the class of a module that the layers of one rule share; `regularize_` makes one.
        has_penalty: whether a training forward leaves a penalty.
        is_plain_dropout: whether it does what ``F.dropout(x, p)`` does, so that a model's own code can do it.
        silent_in_evaluation: whether it returns its input in evaluation.
        in_plain_mlp: whether it is called with ``mlp``; set by `regularize_`.
        observer: called with ``(keep_probability, mask)`` in each forward while statistics are wanted.
    """

    acts_on: ClassVar[Literal["any", "scores", "heads", "tokens"]] = "any"
    looks_at_tokens: ClassVar[bool] = False
    tells_samples_apart: ClassVar[bool] = False
    computes_mlp: ClassVar[bool] = False
    shared_source: ClassVar[type[Any] | None] = None
    is_plain_dropout: ClassVar[bool] = False
    silent_in_evaluation: ClassVar[bool] = False
    has_penalty = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward" in vars(cls):
            for promise in ("is_plain_dropout", "silent_in_evaluation"):
                if promise not in vars(cls):
                    setattr(cls, promise, False)

    def __init__(self) -> None:
        super().__init__()
        self.pending_penalty: Tensor | None = None
        self.stored_without_gradient = False
        self.observer: Callable[[Tensor, Tensor], None] | None = None
        self.in_plain_mlp = False

    @classmethod
    def for_site(cls, site: SiteLike, arguments: Mapping[str, Any], *, inputs: int | None = None) -> Self:
        """Make the layer for a site; a layer with needs of its own overrides this.

        The constructor's ``width`` and ``causal`` come from the site, where it takes them.

        Args:
            site: where it will act.
            arguments: what the recipe says, with the rate and the shared source where there is one.
            inputs: channels of the input of the plain MLP around the site, if there is one.

        Raises:
            InputError: when the layer cannot act there, or an argument is missing.
        """
        given = arguments_for(cls, site, arguments, inputs)
        refuse_place(cls, site)
        return cls(**given)

    def probability(self) -> float | None:
        """Return the probability of dropping; None where there is not one for all elements."""
        return None

    def token_gate(self) -> TokenGate | None:
        """Return the mask of evaluation for a decoder that computes it by itself; None: call the layer."""
        return None

    def set_progress(self, progress: float) -> None:
        """Hear which fraction of training is done; most layers do not care."""

    def store_penalty(self, penalty: Tensor) -> None:
        """Leave the penalty for ``take_penalty``, except in a recomputation."""
        if torch.compiler.is_compiling() or not inside_backward():
            # Trainers repeat a forward without gradients for their metrics before the penalty is read.
            with_gradient = torch.is_grad_enabled()
            if not with_gradient and self.pending_penalty is not None and not self.stored_without_gradient:
                return
            self.pending_penalty = penalty
            self.stored_without_gradient = not with_gradient

    def take_penalty(self) -> Tensor:
        """Return the penalty of the last training forward and empty the slot.

        Raises:
            InputError: when no training forward has run since the last call, or when it ran without
                gradients that are wanted now.
        """
        if self.pending_penalty is None:
            raise InputError(
                "The penalty was read before a forward in training mode; call model.train() and run the "
                "model first, and read the penalty once after each forward."
            )
        penalty, self.pending_penalty = self.pending_penalty, None
        if self.stored_without_gradient and torch.is_grad_enabled():
            raise InputError(
                "The penalty has no gradient, because the forward ran without one. Reentrant activation "
                "checkpointing does that: use checkpoint(..., use_reentrant=False). If it was your own "
                "torch.no_grad(), read the penalty inside it too."
            )
        return penalty

    def __getstate__(self) -> dict:
        # A penalty is part of an autograd graph, which can be neither copied nor pickled.
        return super().__getstate__() | {"pending_penalty": None, "observer": None}


def check_probability(p: float, name: str = "p") -> float:
    """Return ``p`` as a float; refuse what is not a probability.

    Raises:
        InputError: when p lies outside [0, 1].
    """
    if not 0 <= p <= 1:
        raise InputError(f"{name} is {p}, but a probability of dropping lies between 0 and 1.")
    return float(p)


class RateLayer(DropoutLayer):
    """A layer with one probability of dropping that a schedule may move.

    ``p`` is the rate for eager code; ``rate`` is the same number as a 0-dim tensor, so that one compiled
    graph serves every value.
    """

    rate: Tensor

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = check_probability(p)
        self.register_buffer("rate", torch.tensor(self.p), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        # `to_empty` of a model on meta leaves whatever was in memory, and no state_dict brings it.
        self.rate.fill_(self.p)
        return self

    def set_rate(self, p: float) -> None:
        """Set the probability of dropping for the forwards to come."""
        p = check_probability(p)
        # A run sets every rate before every step, and most of them stay.
        if p != self.p:
            self.p = p
            self.rate.fill_(p)

    def probability(self) -> float:
        return self.p

    def current_rate(self) -> float | Tensor:
        """Return ``rate`` while a graph is being compiled, else ``p``."""
        return self.rate if torch.compiler.is_compiling() else self.p

    def extra_repr(self) -> str:
        return f"p={self.p}"
