"""The JAX part of ``from_scratch.py``, in a file that a process of its own imports.

JAX leaves threads that a process which forks later must not have.
"""

import jax
import numpy as np


def dropout(x, p, training, key):
    if not 0 <= p <= 1:
        raise ValueError(f"p is {p}, but it is a probability")
    if not training:
        return x
    if p == 1:
        return jax.numpy.zeros_like(x)
    kept = jax.random.uniform(key, x.shape) >= p
    return x * kept / (1 - p)


def outputs(rates: tuple[float, ...], shape: tuple[int, int]) -> dict[float, np.ndarray]:
    """Return what is made of ones at each rate."""
    ones = jax.numpy.ones(shape)
    return {p: np.asarray(dropout(ones, p, True, jax.random.key(0))) for p in rates}
