"""Gates that learn from data the weights have not seen: two gradients in one step."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..layers import DropoutLayer


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
