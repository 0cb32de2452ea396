"""Two views of the same inputs that differ in more than luck, or cost less than two forwards."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..layers.anchored_dropout import AnchoredDropout
from .layerwise import find_blocks
from .losses import batched, logits_of


def adversarial_dropout_loss(
    logits: Tensor, adversarial: Tensor, labels: Tensor, weight: float, *, ignore_index: int = -100
) -> Tensor:
    """Return the cross-entropy of a plain view plus its divergence from an adversarial one.

    Formula: ``CE(logits, labels) + weight * KL(P || P_adversarial)``, each a mean over examples, or tokens.
    With `AdversarialDropout` in the second view the model descends the divergence and the gate climbs it.

    Args:
        logits, adversarial: of the two views; see `anchored_passes`.
        labels: the true classes.
        weight: strength of the divergence; the paper's lambda.
        ignore_index: label of what counts neither in the cross-entropy nor in the divergence.

    Shape:
        logits, adversarial: (..., classes); labels: (...); result: scalar, in float32 at least.

    Raises:
        InputError: when the shapes do not fit.

    Paper: Park et al. 2018, "Adversarial dropout for supervised and semi-supervised learning".
    """
    if logits.shape != adversarial.shape or logits.shape[:-1] != labels.shape:
        raise InputError(
            f"adversarial_dropout_loss got logits of shapes {tuple(logits.shape)} and "
            f"{tuple(adversarial.shape)} and labels of shape {tuple(labels.shape)}; it needs (..., classes) "
            "twice and (...)."
        )
    dtype = torch.promote_types(logits.dtype, torch.float32)
    # Finite even where a class is masked with -inf, whose 0 * inf would be NaN.
    log1, log2 = (
        torch.log_softmax(each, dim=-1, dtype=dtype).clamp_min(torch.finfo(dtype).min)
        for each in (logits, adversarial)
    )
    flat = labels.reshape(-1)
    cross_entropy = F.nll_loss(log1.reshape(flat.numel(), -1), flat, ignore_index=ignore_index)
    divergence = (log1.exp() * (log1 - log2)).sum(dim=-1)
    counted = labels != ignore_index
    return cross_entropy + weight * torch.where(counted, divergence, 0.0).sum() / counted.sum()


def anchored_layers(model: nn.Module) -> list[AnchoredDropout]:
    """Return the layers of a model that can be the dropout they are anchored to.

    Raises:
        InputError: when there is none.
    """
    layers = [module for module in model.modules() if isinstance(module, AnchoredDropout)]
    if not layers:
        raise InputError(
            "The model has no AnchoredDropout or AdversarialDropout, whose first view is plain dropout; put "
            "one in with td.regularize_, or make two views of one kind with td.two_passes."
        )
    return layers


@contextmanager
def at_anchor(model: nn.Module) -> Iterator[None]:
    """Let every anchored layer be the plain dropout it is anchored to inside the ``with`` block.

    Raises:
        InputError: when the model has no such layer.
    """
    layers = anchored_layers(model)
    try:
        for layer in layers:
            layer.at_anchor = True
        yield
    finally:
        for layer in layers:
            layer.at_anchor = False


def anchored_passes(model: nn.Module, inputs: Tensor | Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the logits of two forwards of the same inputs: under plain dropout, and under learned masks.

    In the first every ``AnchoredDropout`` and ``AdversarialDropout`` is dropout at its ``anchor_p``, in the
    second its mask; all else is as it is. Layer penalties are those of the second.

    Args:
        model: returns logits, or something with ``.logits``; in training mode.
        inputs: one tensor, or keyword arguments, best without labels.

    Raises:
        InputError: when the model has no anchored layer.
    """
    with at_anchor(model):
        plain = logits_of(model, inputs)
    return plain, logits_of(model, inputs)


def tail_passes(
    model: nn.Module, inputs: Tensor | Mapping[str, Any], last: int, *, blocks: str | None = None
) -> tuple[Tensor, Tensor]:
    """Return the logits of two views that share all but the last blocks, for `rdrop_loss`.

    One forward: before the last blocks the batch is doubled, so that the noise in them, and behind them,
    differs between the halves. With ``last`` of ``n`` blocks it costs ``(n + last) / n`` forwards of the
    blocks in place of 2. Layer penalties in the last blocks see both halves.

    Args:
        model: not compiled; returns logits, or something with ``.logits``. Its blocks take the hidden states
            first, and beside them tensors of two dimensions and more whose first is the batch.
        inputs: one tensor, or keyword arguments, best without labels.
        last: how many blocks, from the top, are to differ; at least 1.
        blocks: path of the blocks, an ``nn.ModuleList`` or ``nn.Sequential``; None for the one longest
            ``nn.ModuleList``, or ``nn.Sequential`` of modules of one class.

    Raises:
        InputError: for a ``last`` out of range, blocks that are not clear, or a model whose logits do not
            come twice, as when its head picks tokens by its inputs.

    Paper: Liang et al. 2021, "R-Drop: regularized dropout for neural networks", for the loss.
    """
    batch = len(batched(inputs)[0])
    with doubled_tail(model, last, batch, blocks=blocks):
        return halves(logits_of(model, inputs), batch)


@contextmanager
def doubled_tail(model: nn.Module, last: int, batch: int, *, blocks: str | None = None) -> Iterator[None]:
    """Let the last blocks see a batch of so many examples twice over inside the ``with`` block.

    Args:
        model, last, blocks: as of `tail_passes`.
        batch: examples that the model is given.

    Raises:
        InputError: for a ``last`` out of range, or blocks that are not clear.
    """
    path, number = find_blocks(model, blocks)
    if not 1 <= last <= number:
        raise InputError(f"last is {last}; the model has {number} blocks, so write 1 to {number}.")

    def twice(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(twice, value))
        apart = isinstance(value, Tensor) and value.ndim >= 2 and len(value) == batch
        return torch.cat([value, value]) if apart else value

    def double(module: nn.Module, given: tuple, named: dict) -> tuple[tuple, dict]:
        return twice(given), {name: twice(value) for name, value in named.items()}

    tail = list(model.get_submodule(path).children())[-last:]
    hooks = [block.register_forward_pre_hook(double, with_kwargs=True) for block in tail]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def halves(logits: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Return the logits of two views that came one behind the other.

    Raises:
        InputError: when they did not come twice.
    """
    if len(logits) != 2 * batch:
        raise InputError(
            f"The logits came {len(logits)} times for a batch of {batch}, not twice over; use td.two_passes."
        )
    first, second = logits.chunk(2)
    return first, second
