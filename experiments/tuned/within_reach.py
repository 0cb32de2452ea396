"""The dropping rule: ``python experiments/tuned/within_reach.py SEARCH`` prints the configs that go on.

Reads the ``tuning.json`` of a search and names those of its ``chosen/`` files whose methods are always
compared, or whose best trial is near the lowest of all.
"""

import json
import sys
from pathlib import Path

from transformer_dropout.runs.arm_names import folder_name

ALWAYS = ("none", "weight decay", "dropout", "dropout + weight decay")
# Nats above the lowest best trial.
REACH = 0.03


def within_reach(methods: list[dict]) -> list[str]:
    """Return the names of the methods that go on to fresh seeds, from a search's trials."""
    best = {method["name"]: min(trial["value"] for trial in method["trials"]) for method in methods}
    lowest = min(best.values())
    return [name for name, value in best.items() if name in ALWAYS or value <= lowest + REACH]


if __name__ == "__main__":
    search = Path(sys.argv[1])
    found = json.loads((search / "tuning.json").read_text(encoding="utf-8"))["methods"]
    print(*(search / "chosen" / f"{folder_name(name, 'run')}.yaml" for name in within_reach(found)))
