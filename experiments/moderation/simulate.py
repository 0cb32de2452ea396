"""How often the tests of a comparison err, and what they find: ``python experiments/moderation/simulate.py``.

Draws comparisons whose truth is known, with noise like that of the recorded runs, and counts. An error is a
comparison in which at least one arm without an effect is shown to differ from the reference. The power is the
share of arms with an effect of 0.1 nats that are shown to differ.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from transformer_dropout.compare.moderation import LEVEL, moderated_tests

EXPERIMENTS = Path(__file__).parents[1]
SEEDS, ARMS = (3, 4, 5, 6), (2, 3, 6, 12, 20)
SHARES = {"plain t": 0.0, "quarter": 0.25, "half": 0.5, "whole": 1.0}
EFFECT = 0.1


def residuals() -> dict[str, np.ndarray]:
    """Return, for each recorded comparison, arms x seeds of losses less the means of arm and seed."""
    losses: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for path in sorted(EXPERIMENTS.glob("**/runs/*/seed-*/run.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        if "val_loss" in (run["result"] or {}):
            record = path.parents[3].relative_to(EXPERIMENTS).as_posix()
            losses[record][run["name"]][run["seed"]] = run["result"]["val_loss"]
    found = {}
    for record, arms in losses.items():
        seeds = sorted(set.intersection(*(set(of) for of in arms.values())))
        table = np.array([[of[seed] for seed in seeds] for of in arms.values()])
        if min(table.shape) >= 3:
            found[record] = table - table.mean(1, keepdims=True) - table.mean(0, keepdims=True) + table.mean()
    return found


def noise(kind: str, table: np.ndarray, arms: int, seeds: int, rng: np.random.Generator) -> np.ndarray:
    """Return arms x seeds of noise, the reference first.

    ``equal``: normal, one deviation for all arms. ``own``: normal, each arm with the deviation of an arm of
    the record. ``pooled``: residuals of the record, of any arm and seed, with a random sign. ``noisy
    reference``: as ``own``, the reference with three times the median deviation. ``quiet reference``: with a
    third of it. ``wild arm``: as ``own``, the last arm with ten times the median. ``two kinds``: every second
    arm with a tenth of the others' deviation.
    """
    # Two means were taken out of the residuals.
    wide = table * np.sqrt(table.size / ((table.shape[0] - 1) * (table.shape[1] - 1)))
    own = wide.std(1)
    middle = np.median(own)
    if kind == "pooled":
        return rng.choice(wide.ravel(), (arms, seeds)) * rng.choice((-1.0, 1.0), (arms, seeds))
    deviations = rng.choice(own, arms)
    if kind == "equal":
        deviations = np.full(arms, middle)
    elif kind == "noisy reference":
        deviations[0] = 3 * middle
    elif kind == "quiet reference":
        deviations[0] = middle / 3
    elif kind == "wild arm":
        deviations[-1] = 10 * middle
    elif kind == "two kinds":
        deviations = np.where(np.arange(arms) % 2, middle, middle / 10)
    return deviations[:, None] * rng.normal(size=(arms, seeds))


KINDS = ("equal", "own", "pooled", "noisy reference", "quiet reference", "wild arm", "two kinds")


def holm(p: np.ndarray) -> np.ndarray:
    """Return which arms Holm's step-down procedure would show, to compare with."""
    order = np.argsort(p)
    passed = np.cumprod(p[order] * np.arange(len(p), 0, -1) < LEVEL).astype(bool)
    shown = np.zeros(len(p), dtype=bool)
    shown[order[passed]] = True
    return shown


def count(
    table: np.ndarray, kind: str, arms: int, seeds: int, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Return, for each share, the rates of errors without and beside effects, and power, ours and Holm's."""
    found = np.zeros((len(SHARES), 4))
    others = arms - 1
    affected = np.arange(others) < max(1, others // 2)
    for _ in range(draws):
        drawn = noise(kind, table, arms, seeds, rng)
        gaps = drawn[1:] - drawn[0]
        means, variances = gaps.mean(1), gaps.var(1, ddof=1)
        moved = means + EFFECT * affected
        for at, share in enumerate(SHARES.values()):
            tests = moderated_tests(moved, variances, [seeds] * others, share=share)
            shown = np.abs(moved) > tests.half_width
            found[at] += (
                (np.abs(means) > tests.half_width).any(),
                shown[~affected].any(),
                shown[affected].mean(),
                holm(tests.p)[affected].mean(),
            )
    return found / draws


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=300)
    draws = parser.parse_args().draws
    tables = residuals()
    rates: dict[tuple, np.ndarray] = {}
    for record, table in tables.items():
        for kind in KINDS:
            for arms in ARMS:
                for seeds in SEEDS:
                    # The same numbers whatever else is drawn.
                    rng = np.random.default_rng([list(tables).index(record), KINDS.index(kind), arms, seeds])
                    rates[record, kind, arms, seeds] = count(table, kind, arms, seeds, draws, rng)
    runs = ", ".join(f"`{record}` ({table.shape[0]} arms)" for record, table in tables.items())
    print(f"{draws:,} draws for each of {len(rates)} settings, from the residuals of {runs}.\n")
    for part, name in enumerate(("record", "noise", "arms", "seeds")):
        errors(rates, part, name)
    power({key: rate for key, rate in rates.items() if key[:2] == ("layers", "own")})


def errors(rates: dict[tuple, np.ndarray], part: int, name: str) -> None:
    """Print the error rates by one part of the setting, means over the others."""
    print(f"**Error rate by {name}**\n")
    print(f"| {name} | {' | '.join(SHARES)} |\n| --- |{' ---: |' * len(SHARES)}")
    for value in dict.fromkeys(key[part] for key in rates):
        row(str(value), [rate[:, 0] for key, rate in rates.items() if key[part] == value])
    if part == 0:
        row("**all**", [rate[:, 0] for rate in rates.values()])
        row("all, half of the arms with an effect", [rate[:, 1] for key, rate in rates.items() if key[2] > 2])
    print()


def row(name: str, rates: list[np.ndarray]) -> None:
    """Print one row of means over settings."""
    print(f"| {name} | {' | '.join(f'{rate:.3f}' for rate in np.mean(rates, 0))} |")


def power(rates: dict[tuple, np.ndarray]) -> None:
    """Print the power, in brackets what Holm's step-down procedure would add."""
    print(f"**Power for {EFFECT} nats with the deviations of `layers` (with Holm's step-down test)**\n")
    print(f"| arms | seeds | {' | '.join(SHARES)} |\n| ---: | ---: |{' ---: |' * len(SHARES)}")
    for (_, _, arms, seeds), rate in rates.items():
        cells = [f"{own:.2f} ({step:.2f})" for own, step in rate[:, 2:]]
        print(f"| {arms} | {seeds} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
