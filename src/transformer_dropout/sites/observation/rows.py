"""How attention weights are told from other tensors."""

from torch import Tensor


def rows_summing_to_one(x: Tensor) -> float | None:
    """Return the fraction of rows that sum to 1, None for a tensor that cannot be attention weights.

    Those are not negative, and no row sums to more than 1; less it may, where a sink took the rest.
    """
    if x.ndim < 3 or x.shape[-1] < 2 or not x.is_floating_point() or x.device.type == "meta" or not x.numel():
        return None
    sums = x.detach().float().sum(-1)
    if bool((x.detach() < 0).any()) or bool((sums > 1.02).any()):
        return None
    return ((sums - 1).abs() < 0.02).float().mean().item()
