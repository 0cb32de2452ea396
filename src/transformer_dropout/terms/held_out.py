"""Gates that learn from data the weights have not seen: two gradients in one step."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..layers import DropoutLayer
from ..layers.cross_fitted_dropout import CrossFittedDropout


def gate_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Split a model's trainable parameters into the weights and those of its dropout layers' gates.

    Returns:
        the weights, then the gates: the parameters inside any dropout layer, or in what such layers share.

    Raises:
        InputError: when no layer has one.
    """
    inside: dict[nn.Parameter, None] = {}
    layers = [module for module in model.modules() if isinstance(module, DropoutLayer)]
    sources = tuple({kind.shared_source for kind in map(type, layers) if kind.shared_source is not None})
    for module in model.modules():
        if isinstance(module, (DropoutLayer, *sources)):
            inside |= dict.fromkeys(p for p in module.parameters() if p.requires_grad)
    if not inside:
        raise InputError(
            "The model has no dropout layer with parameters to learn; put one in with td.regularize_, for "
            "example td.LearnedDropout."
        )
    return [p for p in model.parameters() if p.requires_grad and p not in inside], list(inside)


def held_out_split(count: int, share: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Split the indices of training examples into those for the weights and those held out for the gates.

    Args:
        count: number of examples.
        share: the share held out, strictly between 0 and 1; at least one example of either kind.
        seed: of the draw.

    Shape:
        both results: one-dimensional, in ascending order.

    Raises:
        InputError: for a share out of range, or fewer than two examples.
    """
    if not 0 < share < 1:
        raise InputError(f"The held-out share is {share}; it lies strictly between 0 and 1, such as 0.1.")
    if count < 2:
        raise InputError(f"A training split of {count} cannot be divided; it needs two examples or more.")
    held = min(max(round(count * share), 1), count - 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[held:].sort().values, order[:held].sort().values


class HeldOutGates:
    """Gives the gates of a model their gradient from held-out data, and the weights theirs from the rest.

    ::

        gates = td.HeldOutGates(model)
        for batch, held_out in zip(batches, held_out_batches):
            optimizer.zero_grad()
            gates.backward(loss(batch), lambda: loss(held_out))
            optimizer.step()

    Both losses may contain penalties: those of the masks belong to the second, which trains the gates. One
    process only: the second gradient is not shared with others.

    Args:
        model: with learned masks, regularized before.

    Attributes:
        weights, gates: the two kinds of parameters.

    Raises:
        InputError: when no layer of the model has parameters to learn.

    Paper: Luketina et al. 2016, "Scalable gradient-based tuning of continuous regularization
    hyperparameters", for the idea; gates here take the direct gradient of the held-out loss.
    """

    def __init__(self, model: nn.Module) -> None:
        self.weights, self.gates = gate_parameters(model)

    def backward(self, loss: Tensor, held_out_loss: Tensor | Callable[[], Tensor]) -> None:
        """Add the loss's gradient to the weights' and the held-out loss's to the gates'.

        Args:
            loss: of a batch that the weights train on.
            held_out_loss: of a held-out batch, or a function that computes it, called after the first
                backward has freed its memory.
        """
        loss.backward(inputs=self.weights)
        value = held_out_loss() if callable(held_out_loss) else held_out_loss
        value.backward(inputs=self.gates)


class CrossFittedGates(HeldOutGates):
    """Gives each gate of a model's `CrossFittedDropout` its gradient from the half that the other one masks.

    Like `HeldOutGates`, but without examples that the weights never train on: both losses are of the same
    batches, whose sequences alternate between the two halves of the training examples, as
    ``torch.stack([first, second], 1).flatten()`` orders indices of both.

    ::

        gates = td.CrossFittedGates(model)
        for batch in alternating_batches:
            optimizer.zero_grad()
            gates.backward(loss(batch), lambda: loss(batch))
            optimizer.step()

    Args:
        model: with `CrossFittedDropout`, regularized before.

    Raises:
        InputError: when the model has no such layer.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = [part for part in model.modules() if isinstance(part, CrossFittedDropout)]
        if not self._layers:
            raise InputError(
                "The model has no CrossFittedDropout, whose two gates learn from two halves; put one in with "
                "td.regularize_."
            )
        super().__init__(model)

    def backward(self, loss: Tensor, held_out_loss: Tensor | Callable[[], Tensor]) -> None:
        """Add the loss's gradient to the weights', and that under the other masks to the gates'.

        Args:
            loss: of a batch.
            held_out_loss: a function that computes the loss of the same batch again.

        Raises:
            InputError: for a second loss that is computed already, by the masks of the first.
        """
        if not callable(held_out_loss):
            raise InputError("Give the second loss as a function, lambda: loss(batch); its masks are others.")
        loss.backward(inputs=self.weights)
        self._turn()
        try:
            held_out_loss().backward(inputs=self.gates)
        finally:
            self._turn()

    def _turn(self) -> None:
        for layer in self._layers:
            layer.turned = not layer.turned
