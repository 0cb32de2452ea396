"""What pulls weights to zero or to the pre-trained ones: terms of the loss, and soft-thresholding."""

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..kernels.sharded import is_sharded, like_shards, sum_of
from ..schedules import Schedule, as_schedule
from .weights import (
    Held,
    Patterns,
    check_not_negative,
    decayed_groups,
    matching,
    select_parameters,
    starting_values,
    value_at,
)


def l1_penalty(parameters: Iterable[Tensor]) -> Tensor:
    """Return ``sum |w|`` over all elements of all parameters; its gradient at 0 is 0.

    Paper: Tibshirani 1996, "Regression shrinkage and selection via the lasso".
    """
    return sum_of(widened(w).abs().sum() for w in parameters)


def l2_penalty(parameters: Iterable[Tensor]) -> Tensor:
    """Return ``sum w^2 / 2`` over all elements of all parameters, so that the gradient is ``w``.

    Paper: Hoerl and Kennard 1970, "Ridge regression: biased estimation for nonorthogonal problems".
    """
    return sum_of(widened(w).square().sum() for w in parameters) / 2


def elastic_net_penalty(parameters: Iterable[Tensor], l1_ratio: float) -> Tensor:
    """Return ``l1_ratio * sum |w| + (1 - l1_ratio) * sum w^2 / 2``.

    Paper: Zou and Hastie 2005, "Regularization and variable selection via the elastic net".
    """
    parameters = list(parameters)
    return l1_ratio * l1_penalty(parameters) + (1 - l1_ratio) * l2_penalty(parameters)


def l2_sp_penalty(parameters: Iterable[Tensor], start: Iterable[Tensor]) -> Tensor:
    """Return ``sum (w - w0)^2 / 2``, the squared distance to the starting point.

    Paper: Li, Grandvalet and Davoine 2018, "Explicit inductive bias for transfer learning with
    convolutional networks".
    """
    return l2_penalty(widened(w) - widened(w0) for w, w0 in zip(parameters, start, strict=True))


def widened(x: Tensor) -> Tensor:
    """Return half precision as float32: a sum of millions of squares does not fit into it."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def given_or_selected(
    parameters: nn.Module | Iterable[Tensor], select: Patterns | None
) -> list[Tensor] | list[Held]:
    """Return tensors as given, each once, or the places of those that a model's selection names."""
    if isinstance(parameters, nn.Module):
        return select_parameters(parameters, select)
    if select is not None:
        raise InputError("select matches parameter names, and tensors have none; pass the model instead.")
    tensors = list(dict.fromkeys(parameters))
    if not tensors:
        raise InputError("The penalty was given no parameters; pass a model or a list of its parameters.")
    return tensors


class L1:
    """``weight * sum |w|`` as a term of the loss.

    A gradient alone leaves weights near 0 and never at it; for exact zeros see `proximal_l1_`.

    Args:
        parameters: a model, of which the trainable matrices are taken (no norms, no biases, no vectors), or
            tensors, which are taken as they are. One that is tied or given twice counts once. A model's
            parameters are looked up at each call, so it may be sharded before or after; after takes less
            memory.
        weight: strength; a schedule moves with ``set_progress`` and begins at progress 0.
        select: Unix patterns of names in the model, to take exactly the parameters that match.

    Shape:
        calling it returns a scalar.

    Raises:
        InputError: for a pattern that matches no parameter, or when there is nothing to act on.

    Paper: Tibshirani 1996, "Regression shrinkage and selection via the lasso".
    """

    def __init__(
        self,
        parameters: nn.Module | Iterable[Tensor],
        weight: float | Schedule,
        *,
        select: Patterns | None = None,
    ) -> None:
        self._given = given_or_selected(parameters, select)
        self.schedule = as_schedule(weight)
        self.set_progress(0.0)

    @property
    def parameters(self) -> list[Tensor]:
        """What is penalised, as the model holds it now."""
        return [given.current if isinstance(given, Held) else given for given in self._given]

    def set_progress(self, progress: float) -> None:
        """Move the weight to its value at ``progress``, a fraction in [0, 1]."""
        self.weight = value_at(self.schedule, progress)

    def __call__(self) -> Tensor:
        return self.weight * l1_penalty(self.parameters)


class L2(L1):
    """``weight * sum w^2 / 2`` as a term of the loss; its gradient is ``weight * w``.

    Under plain SGD this equals weight decay; under Adam it does not, since Adam rescales the gradient.

    Args:
        parameters, weight, select: as for `L1`.

    Paper: Hoerl and Kennard 1970, "Ridge regression: biased estimation for nonorthogonal problems".
    """

    def __call__(self) -> Tensor:
        return self.weight * l2_penalty(self.parameters)


class ElasticNet(L1):
    """``weight * (l1_ratio * sum |w| + (1 - l1_ratio) * sum w^2 / 2)`` as a term of the loss.

    Args:
        parameters, weight, select: as for `L1`.
        l1_ratio: share of the absolute values, between 0 and 1.

    Raises:
        InputError: as for `L1`, and for an ``l1_ratio`` outside [0, 1].

    Paper: Zou and Hastie 2005, "Regularization and variable selection via the elastic net".
    """

    def __init__(
        self,
        parameters: nn.Module | Iterable[Tensor],
        weight: float | Schedule,
        *,
        l1_ratio: float = 0.5,
        select: Patterns | None = None,
    ) -> None:
        if not 0 <= l1_ratio <= 1:
            raise InputError(f"l1_ratio is {l1_ratio}; it is a share between 0 and 1.")
        super().__init__(parameters, weight, select=select)
        self.l1_ratio = l1_ratio

    def __call__(self) -> Tensor:
        return self.weight * elastic_net_penalty(self.parameters, self.l1_ratio)


class L2SP:
    """``weight * sum (w - w0)^2 / 2 + new_weight * sum v^2 / 2``: a pull to the pre-trained weights ``w0``.

    New parameters ``v``, such as a classifier's, have no pre-trained value and are pulled to 0. Under tied
    parameters each counts once. Build it before training; the model may be sharded before or after.

    Args:
        model: the model to be fine-tuned; its trainable matrices are taken.
        weight: strength of the pull to ``w0``; the paper's alpha.
        pretrained: a ``state_dict`` with ``w0``, in which parameters that are missing or have another shape
            are new; None for the model's weights as they are now.
        new: Unix patterns of the new parameters, needed when ``pretrained`` is None.
        new_weight: strength of the pull of the new ones to 0; the paper's beta.
        select: Unix patterns of names, to take exactly the parameters that match.

    Attributes:
        pulled, new: names of the parameters of either kind.

    Shape:
        calling it returns a scalar.

    Raises:
        InputError: for a pattern that matches no parameter, or when ``pretrained`` fits none of them.

    Paper: Li, Grandvalet and Davoine 2018, "Explicit inductive bias for transfer learning with
    convolutional networks".
    """

    def __init__(
        self,
        model: nn.Module,
        weight: float | Schedule,
        *,
        pretrained: Mapping[str, Tensor] | None = None,
        new: Patterns = (),
        new_weight: float | Schedule = 0.01,
        select: Patterns | None = None,
    ) -> None:
        parameters = select_parameters(model, select)
        declared = {held.parameter for held in matching(parameters, new)}
        candidates = [held for held in parameters if held.parameter not in declared]
        known, self.start = starting_values(candidates, pretrained)
        pulled = {held.parameter for held in known}
        self._pulled = known
        self._new: list[Held] = [held for held in parameters if held.parameter not in pulled]
        self.pulled = [held.names[0] for held in self._pulled]
        self.new = [held.names[0] for held in self._new]
        self.schedule, self.new_schedule = as_schedule(weight), as_schedule(new_weight)
        self.set_progress(0.0)

    def set_progress(self, progress: float) -> None:
        """Move both weights to their values at ``progress``, a fraction in [0, 1]."""
        self.weight = value_at(self.schedule, progress)
        self.new_weight = value_at(self.new_schedule, progress)

    def __call__(self) -> Tensor:
        weights = [held.current for held in self._pulled]
        # The model may have been moved or sharded since.
        self.start = [as_held(w0, w) for w0, w in zip(self.start, weights, strict=True)]
        total = self.weight * l2_sp_penalty(weights, self.start)
        if self._new:
            total = total + self.new_weight * l2_penalty([held.current for held in self._new])
        return total


def as_held(start: Tensor, weight: Tensor) -> Tensor:
    """Return a starting value on the device, in the dtype and in the sharding of its weight."""
    return (start if is_sharded(start) else like_shards(start, weight)).to(weight)


def proximal_l1_(
    target: torch.optim.Optimizer | Iterable[Tensor], weight: float, lr: float | None = None
) -> None:
    """Shrink weights towards 0 in place, after an optimizer step; the small ones become exactly 0.

    Formula: ``w <- sign(w) max(|w| - lr weight, 0)``.

    After plain gradient descent this is the proximal step of ``loss + weight * sum|w|`` and ends at its
    minimum. Under Adam the threshold stays ``lr * weight`` and is not divided by Adam's ``sqrt(v)``: a
    penalty decoupled from the loss, as AdamW's decay is, whose end is another one. A weight goes to 0 where
    Adam's steps, in units of ``lr``, push less than ``weight`` on average; from ``weight`` 1 on that is
    nearly everywhere.

    Args:
        target: an optimizer, whose decayed groups are shrunk, each by its own learning rate; or tensors.
        weight: strength of the penalty.
        lr: the learning rate of the step before; for tensors only. In bfloat16 a threshold far below a
            weight's own size is rounded away: keep such weights in float32.

    Raises:
        InputError: for a negative number, tensors without ``lr``, an optimizer with one, or an optimizer
            whose groups do not say what decays.

    Paper: Parikh and Boyd 2014, "Proximal algorithms"; Tibshirani 1996, "Regression shrinkage and selection
    via the lasso".
    """
    check_not_negative("weight", weight)
    if isinstance(target, torch.optim.Optimizer):
        if lr is not None:
            raise InputError("proximal_l1_ takes lr from the optimizer's groups; leave lr out.")
        pairs = [(p, float(group["lr"])) for group in decayed_groups(target) for p in group["params"]]
    else:
        if lr is None:
            raise InputError("proximal_l1_ of tensors needs lr, the learning rate of the step before.")
        check_not_negative("lr", lr)
        pairs = [(tensor, lr) for tensor in dict.fromkeys(target)]
    with torch.no_grad():
        for tensor, rate in pairs:
            tensor.copy_(F.softshrink(tensor, rate * weight))
