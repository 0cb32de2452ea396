"""What the numbers of a tensor say, where it has any to look at."""

from torch import Tensor

from ...kernels.torch_internals import is_functorch_wrapped


def has_numbers(x: Tensor) -> bool:
    """Return whether a tensor's numbers can be looked at, as those of a meta tensor or inside vmap cannot."""
    return x.device.type != "meta" and not is_functorch_wrapped(x)


def rows_summing_to_one(x: Tensor) -> float | None:
    """Return the fraction of rows that sum to 1, None for a tensor that cannot be attention weights.

    Such weights are not negative, and no row sums to more than 1; it sums to less where a sink took the rest.
    """
    if x.ndim < 3 or x.shape[-1] < 2 or not x.is_floating_point() or not has_numbers(x) or not x.numel():
        return None
    sums = x.detach().float().sum(-1)
    if bool((x.detach() < 0).any()) or bool((sums > 1.02).any()):
        return None
    return ((sums - 1).abs() < 0.02).float().mean().item()
