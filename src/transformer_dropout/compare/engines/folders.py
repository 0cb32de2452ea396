"""Whether a machine sees a comparison's folder, and where its runs go when it does not."""

import json
from pathlib import Path

from ...tasks.language.data.prepared import default_cache

# What travels back from a machine that does not see the folder, in the order in which it is written there.
SMALL_FILES = ("config.yaml", "log.txt", "metrics.jsonl", "run.json")


def comparison_id(folder: Path) -> str:
    """Return what a comparison is told by; empty where there is none to be seen."""
    try:
        return str(json.loads((folder / "comparison.json").read_text(encoding="utf-8")).get("id", ""))
    except (OSError, ValueError):
        return ""


def own_folder(id: str) -> Path:
    """Return where a machine keeps the runs of a comparison whose folder it does not see."""
    return default_cache() / "runs" / id
