"""A multilayer perceptron."""

from itertools import pairwise

from torch import Tensor, nn

from ..errors import InputError

MOST_LAYERS, MOST_UNITS = 1000, 10**7


class MultilayerPerceptron(nn.Module):
    """Linear layers with ReLU between them: ``x -> W_n relu(... relu(W_1 x + b_1)) + b_n``.

    Args:
        widths: of the input, of each hidden layer, of the output; two numbers make a linear model.

    Shape:
        (batch, ...) with ``widths[0]`` numbers per sample -> (batch, widths[-1]).
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        linears = [nn.Linear(*pair) for pair in pairwise(widths)]
        hidden = [part for linear in linears[:-1] for part in (linear, nn.ReLU())]
        self.layers = nn.Sequential(*hidden, linears[-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(1))


def check_hidden(hidden: tuple[int, ...]) -> None:
    """Raise InputError for a hidden layer without units, or with more than could be counted with."""
    if not all(1 <= width <= MOST_UNITS for width in hidden) or len(hidden) > MOST_LAYERS:
        raise InputError(
            f"model.hidden is {str(list(hidden))[:100]}, but each of at most {MOST_LAYERS:,} hidden layers "
            f"has 1 to {MOST_UNITS:,} units: --set model.hidden='[256, 256]'"
        )
