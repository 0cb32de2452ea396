"""Dropout from scratch in PyTorch, JAX and NumPy: the same eight lines, and what each does."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch
from drawing import chart, charts

import transformer_dropout as td

RATES = (0.2, 0.5, 0.8)
SHAPE = (400, 500)


def dropout_in_pytorch(x, p, training, generator):
    if not 0 <= p <= 1:
        raise ValueError(f"p is {p}, but it is a probability")
    if not training:
        return x
    if p == 1:
        return torch.zeros_like(x)
    kept = torch.rand(x.shape, generator=generator) >= p
    return x * kept / (1 - p)


def dropout_in_numpy(x, p, training, generator):
    if not 0 <= p <= 1:
        raise ValueError(f"p is {p}, but it is a probability")
    if not training:
        return x
    if p == 1:
        return np.zeros_like(x)
    kept = generator.random(x.shape) >= p
    return x * kept / (1 - p)


def outputs() -> dict[str, dict[float, np.ndarray]]:
    """Return, for each framework and rate, what its dropout makes of ones."""
    ones, torch_generator = torch.ones(SHAPE), torch.Generator().manual_seed(0)
    generator = np.random.default_rng(0)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        return {
            "PyTorch": {p: dropout_in_pytorch(ones, p, True, torch_generator).numpy() for p in RATES},
            "JAX": apart.submit(outputs_in_jax, RATES, SHAPE).result(),
            "NumPy": {p: dropout_in_numpy(np.ones(SHAPE), p, True, generator) for p in RATES},
        }


def outputs_in_jax(rates: tuple[float, ...], shape: tuple[int, int]) -> dict[float, np.ndarray]:
    """Return what JAX's dropout makes of ones at each rate; for a process of its own."""
    from pages import from_scratch_jax

    return from_scratch_jax.outputs(rates, shape)


def measure() -> dict:
    """Return what each framework's eight lines do, and the mean of ones with and without the division."""
    rows = {}
    for framework, by_rate in outputs().items():
        for p, y in by_rate.items():
            kept = torch.tensor(y != 0)
            ours = (torch.ones(SHAPE) * kept * td.functional.inverse_keep(p)).numpy()
            rows[framework, p] = {
                "kept": float((y != 0).mean()),
                "mean": float(y.mean()),
                "std": float(y.std()),
                "difference": float(abs(y - ours).max()),
            }
    rates = [n / 20 for n in range(20)]
    ones, generator = torch.ones(100, 100), torch.Generator().manual_seed(0)
    scaled = [(p, dropout_in_pytorch(ones, p, True, generator).mean().item()) for p in rates]
    return {
        "rows": rows,
        "means": {"divided by 1 - p": scaled, "not divided": [(p, (1 - p) * mean) for p, mean in scaled]},
        "stds": {
            "measured": [(p, dropout_in_pytorch(ones, p, True, generator).std().item()) for p in rates],
            "sqrt(p / (1 - p))": [(p, (p / (1 - p)) ** 0.5) for p in rates],
        },
    }


def table(found: dict) -> str:
    """Return a line for each framework and rate."""
    lines = [
        "| framework | p | kept | mean of y | std of y | largest difference to td at the same mask |",
        "|---|---|---|---|---|---|",
    ]
    for (framework, p), row in found["rows"].items():
        lines.append(
            f"| {framework} | {p} | {row['kept']:.3f} | {row['mean']:.3f} | {row['std']:.3f} | "
            f"{'below 1e-6' if row['difference'] < 1e-6 else row['difference']} |"
        )
    return "\n".join(lines)


def figure(found: dict) -> str:
    """Return mean and standard deviation of what becomes of ones, over the rate."""
    return charts(
        chart(0, found["means"], ("p", "mean of y for x = 1")),
        chart(360, found["stds"], ("p", "standard deviation of y for x = 1")),
        width=360,
    )
