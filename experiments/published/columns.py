"""Write the record in the columns of the published table, with its figures beside: into this folder's README.

    python experiments/published/columns.py

Published figures: Yan 2024, one seed each, and evaluated with attention dropout left on.
"""

import json
import re
from pathlib import Path

from transformer_dropout.compare.records import Comparison, load_comparison

FOLDER = Path(__file__).parent
MARKED = re.compile(r"(<!-- columns\.py -->\n).*?(<!-- end -->)", flags=re.DOTALL)
# Arm: published validation loss, percent kept.
PUBLISHED: dict[str, tuple[float, float | None]] = {
    "baseline": (3.475, None),
    "dropout 0.2 baseline": (3.354, None),
    "dropout 0.3 baseline": (3.425, None),
    "dropout 0.4 baseline": (3.512, None),
    "with penalty": (3.384, 61.7),
    "without penalty": (3.403, 96.1),
    "shift init half pi": (3.405, 59.6),
    "shift init pi": (3.457, 25.1),
    "precomputed masks": (3.425, 77.5),
}


def mean_of(comparison: Comparison, arm: str, *path: str) -> float | None:
    """Return the mean over seeds of a number in ``run.json``, None where the runs have none."""
    found = [run.section(path[0]).get(path[1]) for run in comparison.usable(arm)]
    return None if None in found else sum(found) / len(found)


def left_on(arm: str) -> float | None:
    """Return the mean validation loss of an arm with its attention dropout left on."""
    found = json.loads((FOLDER / "attention_left_on.json").read_text(encoding="utf-8"))
    of_arm = [row["on"] for run, row in found.items() if run.split("/")[0] == arm.replace(" ", "-")]
    return sum(of_arm) / len(of_arm) if of_arm else None


def cell(value: float | None, digits: int = 3, scale: float = 1.0) -> str:
    """Return a number as a cell."""
    return "" if value is None else f"{scale * value:.{digits}f}"


def columns() -> str:
    """Return the table."""
    comparison = load_comparison(FOLDER)
    lines = [
        "| arm | size without positions | train | validation | attention dropout left on | kept, % |"
        " published validation | published kept, % |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for arm, (loss, kept) in PUBLISHED.items():
        cells = (
            f"{mean_of(comparison, arm, 'parameters', 'without_positional'):,.0f}",
            cell(mean_of(comparison, arm, "result", "train_loss")),
            cell(mean_of(comparison, arm, "result", "val_loss")),
            cell(left_on(arm)),
            cell(mean_of(comparison, arm, "result", "keep_eval"), 1, 100),
            cell(loss),
            cell(kept, 1),
        )
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the table between its marks."""
    page = FOLDER / "README.md"
    text = page.read_text(encoding="utf-8")
    page.write_text(MARKED.sub(lambda found: found[1] + columns() + found[2], text), encoding="utf-8")


if __name__ == "__main__":
    main()
